"""Figures of the evaluations: curves over length, position, steps and checkpoints, and bars of tasks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hope_jax.evals.suite.plots import COLORS, LENGTH_ONLY, MAJORITY
from hope_jax.evals.suite.run import ARMS
from hope_jax.report.figures import FAINT, GREY, INK, TRAIN

_TITLES = {
    "choice": "choice by likelihood",
    "match": "right answers in the text",
    "removed_choice": "choice, context removed",
}
_MARKS = {LENGTH_ONLY: ("x", "by length alone"), MAJORITY: ("+", "most frequent answer")}
_WIDTH = 3.1

Metric = Mapping[str, Any]
Point = tuple[float, Metric]
Lines = Mapping[str, Sequence[Point]]
"""Name of a line -> (place, metric) of its points."""


def _panel(width: float = 7, height: float = 3.5) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _label(axes: Axes, x: str, y: str) -> None:
    axes.set(xlabel=x, ylabel=y)
    axes.legend(fontsize=7)


def _spread(metrics: Sequence[Metric]) -> tuple[np.ndarray, np.ndarray]:
    """Values [n], and how far their intervals go below and above [2, n]; not at all where there is none."""
    values = np.array([metric["value"] for metric in metrics])
    bounds = np.array([metric["ci95"] or [metric["value"]] * 2 for metric in metrics]).T
    return values, np.maximum([values - bounds[0], bounds[1] - values], 0.0)


def adaptation_figures(outcome: Mapping[str, Any]) -> dict[str, Figure]:
    """Losses along the stream, and those of held-out slices after each segment, by method."""
    names = outcome["settings"]["segments"]
    stream, axes = _panel(8)
    for method, losses in outcome["stream_losses"].items():
        axes.plot(_smooth(np.concatenate(losses)), label=method)
    at = 0
    for name, losses in zip(names, outcome["stream_losses"]["carried"], strict=True):
        axes.axvline(at, color="0.8", linewidth=0.8)
        axes.text(at, axes.get_ylim()[1], name, fontsize=7, va="top")
        at += len(losses)
    _label(axes, "block of the stream", "nats per token as read")
    kept = Figure(figsize=(2.4 * len(names), 3), layout="constrained")
    panels = kept.subplots(1, len(names), squeeze=False)[0]
    for i, (name, panel) in enumerate(zip(names, panels, strict=True)):
        for method, table in outcome["held_out_after"].items():
            values = [outcome["held_out_start"][i], *(row[i] for row in table)]
            panel.plot(range(len(values)), values, marker=".", label=method)
        panel.axvline(i + 1, color="0.8", linewidth=0.8)
        panel.set_title(name, fontsize=8)
        panel.set_xlabel("segments read")
    panels[0].set_ylabel("held-out nats per token")
    panels[0].legend(fontsize=7)
    return {"adaptation_stream": stream, "adaptation_held_out": kept}


def _smooth(values: np.ndarray, over: int = 5) -> np.ndarray:
    """Running means of up to `over` values that end at each."""
    padded = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(padded))
    starts = np.maximum(ends - over, 0)
    return (padded[ends] - padded[starts]) / (ends - starts)


def continual_figures(outcome: Mapping[str, Any]) -> dict[str, Figure]:
    """Held-out loss of each segment over the checkpoints, and forgetting, with intervals, for each arm."""
    figures, checkpoints = {}, outcome["checkpoints"]
    for kind, name in (("table", "continual_"), ("forgetting", "continual_forgetting_")):
        label = "held-out nats per token" if kind == "table" else "forgetting, nats per token"
        for arm, table in outcome[kind].items():
            # None: there is no figure at this checkpoint.
            lines = {who: [(at, c) for at, c in enumerate(cs) if c is not None] for who, cs in table.items()}
            if not any(lines.values()):
                continue
            figures[f"{name}{arm}"], axes = _panel()
            for who, points in lines.items():
                if points:
                    values, spread = _spread([cell for _, cell in points])
                    places, width = [at for at, _ in points], 3 if who == "all" else 1
                    axes.errorbar(places, values, spread, marker=".", label=who, linewidth=width)
            axes.set_xticks(range(len(checkpoints)), checkpoints, fontsize=7)
            _label(axes, "checkpoint", label)
    return figures


def class_incremental_figures(outcome: Mapping[str, Any]) -> dict[str, Figure]:
    """Accuracy among the classes seen so far after each step, by arm; one figure a dataset."""
    figures = {}
    for dataset, curves in outcome["curves"].items():
        figures[f"class_incremental_{dataset}"], axes = _panel()
        steps = range(1, 1 + len(curves["chance"]))
        for arm, values in curves["accuracy"].items():
            axes.plot(steps, values, marker=".", label=arm)
        axes.plot(steps, curves["chance"], color="0.6", linestyle=":", label="chance")
        _label(axes, f"steps of classes read ({dataset})", "accuracy")
    return figures


def synthetic_figures(outcome: Mapping[str, Any]) -> dict[str, Figure]:
    """Strings right over length, where the splits have strings of several lengths."""
    curves = outcome["by_length"]
    if len({step["to"] for steps in curves.values() for step in steps}) < 3:
        return {}
    figure, axes = _panel(6, 3.2)
    for at, steps in curves.items():
        values, spread = _spread([step["strings"] for step in steps])
        axes.errorbar([step["to"] for step in steps], values, spread, marker="o", capsize=2, label=at)
    axes.set(xlabel="tokens of the string, up to", ylabel="strings right", ylim=(-0.05, 1.05))
    axes.set_title(outcome["settings"]["task"])
    axes.legend()
    return {"synthetic": figure}


def length_figures(outcome: Mapping[str, Any]) -> dict[str, Figure]:
    """A figure for each measure of `_TITLES`, a panel a task: the share right over length in tokens, a line
    an arm, with 95 % intervals and the level of chance; of metrics "task@length/field/arm"."""
    found: dict[str, dict[str, dict[str, list[Point]]]] = {}
    for key, metric in outcome["metrics"].items():
        group, field, arm = key.split("/")
        task, length = group.split("@")
        if field in _TITLES:
            arms = found.setdefault(field, {}).setdefault(task, {})
            arms.setdefault(arm, []).append((float(length), metric))
    return {f"{outcome['eval']}_{field}": _over_length(_TITLES[field], t) for field, t in found.items()}


def _over_length(title: str, tasks: Mapping[str, Lines]) -> Figure:
    columns = min(4, len(tasks))
    rows = -(-len(tasks) // columns)
    figure = Figure(figsize=(_WIDTH * columns + 0.4, 2.4 * rows + 0.3), layout="constrained")
    for i, (task, arms) in enumerate(tasks.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        _lines(axes, task, arms)
        chance = next(iter(arms.values()))[0][1].get("chance")
        if chance is not None:
            axes.axhline(chance, color=GREY, linestyle=":", linewidth=1, label="chance")
        axes.set_ylim(-0.04, 1.04)
        if i % columns == 0:
            axes.set_ylabel(title, fontsize=8, color=GREY)
        if i // columns == rows - 1:
            axes.set_xlabel("length in tokens", fontsize=8, color=GREY)
        if not i:
            axes.legend(frameon=False, fontsize=7)
    return figure


def perplexity_figures(outcome: Mapping[str, Any]) -> dict[str, Figure]:
    """Nats per token over the position in a text, a panel a group, a line an arm, with 95 % intervals."""
    groups: dict[str, dict[str, list[Point]]] = {}
    for key, metric in outcome["metrics"].items():
        group, _, arm = key.split("/")
        half, _, bucket = group.partition("position_")
        if bucket:
            panel = groups.setdefault("second halves" if half else "whole pieces", {})
            panel.setdefault(arm, []).append((int(bucket.split("_")[0]), metric))
    figure = Figure(figsize=(2 * _WIDTH * len(groups) + 0.4, 3.0), layout="constrained")
    for i, (title, arms) in enumerate(groups.items()):
        axes = figure.add_subplot(1, len(groups), i + 1)
        _lines(axes, title, arms)
        axes.set_xlabel("tokens before", fontsize=8, color=GREY)
        axes.set_ylabel("nats per token", fontsize=8, color=GREY)
        axes.legend(frameon=False, fontsize=7)
    return {"perplexity_over_position": figure}


def _lines(axes: Axes, title: str, lines: Lines) -> None:
    """Values over a logarithmic axis, with their intervals where there are any. Later lines stand a little to
    the right, or equal ones would hide each other."""
    colors = {**COLORS, "writes_on": TRAIN, "writes_off": GREY}
    for number, (arm, points) in enumerate(lines.items()):
        ordered = sorted(points, key=lambda point: point[0])
        places = [max(at, 8) for at, _ in ordered]
        values, spread = _spread([metric for _, metric in ordered])
        axes.errorbar(
            [place * 2 ** (0.05 * number) for place in places], values, yerr=spread, label=arm,
            color=colors.get(arm), marker="o", markersize=3, capsize=2,
        )  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_xticks(places, [f"{at:g}" for at, _ in ordered], rotation=45 if len(places) > 6 else 0)
    axes.minorticks_off()
    axes.grid(True, color=FAINT, linewidth=0.5)
    axes.tick_params(labelsize=7, colors=GREY)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize=8.5, color=INK)


def zeroshot_figures(outcome: Mapping[str, Any]) -> dict[str, Figure]:
    """A figure for each of "acc" and "acc_norm" that the outcome has: each task's arms with their intervals,
    beside chance, length, and the most frequent answer."""
    found: dict[str, dict[str, dict[str, Metric]]] = {}
    for key, value in outcome["metrics"].items():
        task, metric, arm = key.split("/")
        found.setdefault(metric, {}).setdefault(task, {})[arm] = value
    return {f"zeroshot_{name}": _bars(name, found[name]) for name in ("acc", "acc_norm") if name in found}


def _bars(metric: str, tasks: Mapping[str, Mapping[str, Metric]]) -> Figure:
    figure, axes = _panel(1.5 + 1.1 * len(tasks), 4)
    arms = [arm for arm in ARMS if any(arm in found for found in tasks.values())]
    width = 0.8 / len(arms)
    for i, arm in enumerate(arms):
        shift = width * (i + 0.5) - 0.4
        at = [(n + shift, found[arm]) for n, found in enumerate(tasks.values()) if arm in found]
        values, spread = _spread([value for _, value in at])
        axes.bar([x for x, _ in at], values, width, yerr=spread, capsize=3, label=arm)
    for n, found in enumerate(tasks.values()):
        if (chance := found[arms[0]]["chance"]) is not None:
            axes.hlines(chance, n - 0.45, n + 0.45, colors="black", linestyles="dotted")
    for arm, (mark, label) in _MARKS.items():
        points = [(n, found[arm]["value"]) for n, found in enumerate(tasks.values()) if arm in found]
        if points:
            axes.scatter(*zip(*points, strict=True), marker=mark, color="black", zorder=3, label=label)
    axes.set_xticks(range(len(tasks)), list(tasks), rotation=30, ha="right")
    axes.set_ylim(0, 1)
    axes.set_ylabel(f"{metric} (95 % intervals; dotted: chance)")
    axes.legend(fontsize="small")
    return figure
