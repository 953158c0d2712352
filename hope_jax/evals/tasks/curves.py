"""Figures of the evaluations: curves over length, position, steps and checkpoints, and rows of tasks."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hope_jax.evals.suite.plots import Metric, lines_figure, metrics_figure, split

_TITLES = {
    "choice": "choice by likelihood",
    "match": "right answers in the text",
    "removed_choice": "choice, context removed",
}

Point = tuple[float, Metric]


def _points(values: Iterable[float], first: int = 0) -> list[Point]:
    """Values one after the other."""
    return [(at, {"value": float(value)}) for at, value in enumerate(values, first)]


def adaptation_figures(outcome: Mapping[str, Any]) -> dict[str, Figure]:
    """Losses along the stream (running means of 5 blocks), and those of held-out slices after each segment,
    by method."""
    names, streams = outcome["settings"]["segments"], outcome["stream_losses"]
    lines = {}
    for method, losses in streams.items():
        sums = np.convolve(np.concatenate(losses), np.ones(5))[: sum(map(len, losses))]
        lines[method] = _points(sums / np.minimum(np.arange(1, len(sums) + 1), 5))
    stream = lines_figure({"": lines}, "block of the stream", "nats per token as read")
    begins = np.cumsum([0, *map(len, streams["carried"])])
    for name, at in zip(names, begins, strict=False):
        stream.axes[0].axvline(at, color="0.8", linewidth=0.8)
        stream.axes[0].text(at, stream.axes[0].get_ylim()[1], name, fontsize=7, va="top")
    start, after = outcome["held_out_start"], outcome["held_out_after"]
    panels = {
        name: {m: _points([start[i], *(row[i] for row in table)]) for m, table in after.items()}
        for i, name in enumerate(names)
    }
    kept = lines_figure(panels, "segments read", "held-out nats per token")
    for i, axes in enumerate(kept.axes, 1):
        axes.axvline(i, color="0.8", linewidth=0.8)
    return {"adaptation_stream": stream, "adaptation_held_out": kept}


def continual_figures(outcome: Mapping[str, Any]) -> dict[str, Figure]:
    """Held-out loss of each segment over the checkpoints, and forgetting, with intervals, for each arm."""
    figures = {}
    ticks: dict[float, str] = dict(enumerate(outcome["checkpoints"]))
    for kind, name in (("table", "continual_"), ("forgetting", "continual_forgetting_")):
        label = "held-out nats per token" if kind == "table" else "forgetting, nats per token"
        for arm, table in outcome[kind].items():
            # None: there is no figure at this checkpoint.
            lines = {who: [(at, c) for at, c in enumerate(cs) if c is not None] for who, cs in table.items()}
            if any(lines.values()):
                figures[f"{name}{arm}"] = lines_figure({"": lines}, "checkpoint", label, ticks=ticks)
    return figures


def class_incremental_figures(outcome: Mapping[str, Any]) -> dict[str, Figure]:
    """Accuracy among the classes seen so far after each step, by arm; one figure a dataset."""
    figures = {}
    for dataset, curves in outcome["curves"].items():
        lines = {**curves["accuracy"], "chance": curves["chance"]}
        panel = {"": {arm: _points(values, 1) for arm, values in lines.items()}}
        label = f"steps of classes read ({dataset})"
        figures[f"class_incremental_{dataset}"] = lines_figure(panel, label, "accuracy")
    return figures


def synthetic_figures(outcome: Mapping[str, Any]) -> dict[str, Figure]:
    """Strings right over length, where the splits have strings of several lengths."""
    curves = outcome["by_length"]
    if len({step["to"] for steps in curves.values() for step in steps}) < 3:
        return {}
    lines = {at: [(step["to"], step["strings"]) for step in steps] for at, steps in curves.items()}
    panel, label = {outcome["settings"]["task"]: lines}, "tokens of the string, up to"
    return {"synthetic": lines_figure(panel, label, "strings right", shares=True)}


def length_figures(outcome: Mapping[str, Any]) -> dict[str, Figure]:
    """A figure for each measure of `_TITLES`, a panel a task: the share right over length in tokens, a line
    an arm, with the level of chance; of metrics "task@length/field/arm"."""
    found: dict[str, dict[str, dict[str, list[Point]]]] = {}
    ticks: dict[float, str] = {}
    for key, metric in outcome["metrics"].items():
        group, field, arm = key.split("/")
        task, length = group.split("@")
        ticks[float(length)] = length
        if field in _TITLES:
            arms = found.setdefault(field, {}).setdefault(task, {})
            arms.setdefault(arm, []).append((float(length), metric))
    return {
        f"{outcome['eval']}_{field}": lines_figure(
            tasks, "length in tokens", _TITLES[field], ticks=ticks, shares=True, log=True
        )
        for field, tasks in found.items()
    }


def perplexity_figures(outcome: Mapping[str, Any]) -> dict[str, Figure]:
    """Nats per token over the position in a text, a panel a group, a line an arm."""
    groups: dict[str, dict[str, list[Point]]] = {}
    ticks: dict[float, str] = {}
    for key, metric in outcome["metrics"].items():
        group, _, arm = key.split("/")
        half, _, bucket = group.partition("position_")
        if bucket:
            low = bucket.split("_")[0]
            place = float(max(int(low), 8))
            ticks[place] = low
            panel = groups.setdefault("second halves" if half else "whole pieces", {})
            panel.setdefault(arm, []).append((place, metric))
    return {
        "perplexity_over_position": lines_figure(
            groups, "tokens before", "nats per token", ticks=ticks, log=True
        )
    }


def zeroshot_figures(outcome: Mapping[str, Any]) -> dict[str, Figure]:
    """A figure for each of "acc" and "acc_norm" that the outcome has: each task's arms with their intervals,
    beside chance, length, and the most frequent answer."""
    figures = {}
    for name in ("acc", "acc_norm"):
        own = {key: metric for key, metric in outcome["metrics"].items() if split(key)[1] == name}
        if (figure := metrics_figure(own)) is not None:
            figures[f"zeroshot_{name}"] = figure
    return figures
