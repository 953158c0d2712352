"""Figures of the continual evaluations."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure


def adaptation_figures(outcome: Mapping[str, Any]) -> dict[str, Figure]:
    """Losses along the stream, and those of held-out slices after each segment, by method."""
    names = outcome["settings"]["segments"]
    stream = Figure(figsize=(8, 3.5), layout="constrained")
    axes = stream.subplots()
    for method, losses in outcome["stream_losses"].items():
        axes.plot(_smooth(np.concatenate(losses)), label=method)
    at = 0
    for name, losses in zip(names, outcome["stream_losses"]["carried"], strict=True):
        axes.axvline(at, color="0.8", linewidth=0.8)
        axes.text(at, axes.get_ylim()[1], name, fontsize=7, va="top")
        at += len(losses)
    _label(axes, "block of the stream", "nats per token as read")
    kept = Figure(figsize=(2.4 * len(names), 3), layout="constrained")
    for i, (name, panel) in enumerate(
        zip(names, kept.subplots(1, len(names), squeeze=False)[0], strict=True)
    ):
        for method, table in outcome["held_out_after"].items():
            values = [outcome["held_out_start"][i], *(row[i] for row in table)]
            panel.plot(range(len(values)), values, marker=".", label=method)
        panel.axvline(i + 1, color="0.8", linewidth=0.8)
        panel.set_title(name, fontsize=8)
        panel.set_xlabel("segments read")
    kept.axes[0].set_ylabel("held-out nats per token")
    kept.axes[0].legend(fontsize=7)
    return {"adaptation_stream": stream, "adaptation_held_out": kept}


def continual_figures(outcome: Mapping[str, Any]) -> dict[str, Figure]:
    """Held-out loss of each segment over the checkpoints, and forgetting, with intervals, for each arm."""
    figures = {}
    for kind, label in (("table", "held-out nats per token"), ("forgetting", "forgetting, nats per token")):
        for arm, table in outcome[kind].items():
            if any(cell for cells in table.values() for cell in cells):
                figure = _over_checkpoints(table, outcome["checkpoints"], label)
                figures[f"continual_{'forgetting_' if kind == 'forgetting' else ''}{arm}"] = figure
    return figures


def _over_checkpoints(
    table: Mapping[str, Sequence[Mapping[str, Any] | None]], checkpoints: Sequence[str], label: str
) -> Figure:
    """A line a name; None: there is no figure at this checkpoint."""
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    for name, cells in table.items():
        there = [(at, cell) for at, cell in enumerate(cells) if cell is not None]
        if there:
            values = np.array([cell["value"] for _, cell in there])
            low, high = np.array([cell["ci95"] or [cell["value"]] * 2 for _, cell in there]).T
            at, bars = [at for at, _ in there], [values - low, high - values]
            axes.errorbar(at, values, bars, marker=".", label=name, linewidth=3 if name == "all" else 1)
    axes.set_xticks(range(len(checkpoints)), checkpoints, fontsize=7)
    _label(axes, "checkpoint", label)
    return figure


def class_incremental_figures(outcome: Mapping[str, Any]) -> dict[str, Figure]:
    """Accuracy among the classes seen so far after each step, by arm; one figure a dataset."""
    figures = {}
    for dataset, curves in outcome["curves"].items():
        figure = Figure(figsize=(7, 3.5), layout="constrained")
        axes = figure.subplots()
        steps = range(1, 1 + len(curves["chance"]))
        for arm, values in curves["accuracy"].items():
            axes.plot(steps, values, marker=".", label=arm)
        axes.plot(steps, curves["chance"], color="0.6", linestyle=":", label="chance")
        _label(axes, f"steps of classes read ({dataset})", "accuracy")
        figures[f"class_incremental_{dataset}"] = figure
    return figures


def _label(axes: Any, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend(fontsize=7)


def _smooth(values: Sequence[float] | np.ndarray, over: int = 5) -> np.ndarray:
    """Running means of up to `over` values that end at each."""
    padded = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(padded))
    starts = np.maximum(ends - over, 0)
    return (padded[ends] - padded[starts]) / (ends - starts)
