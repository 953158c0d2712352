"""Plots of results: metrics with their intervals by arm, and differences from a baseline."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hope_jax.evals.run import ARMS
from hope_jax.evals.zeroshot_metrics import LENGTH_ONLY, MAJORITY
from hope_jax.training.figures import GREY, HELD_OUT, INK, NO_WRITES, STYLE, TRAIN

COLORS = {"": TRAIN, "baseline": TRAIN, "memorized": HELD_OUT, "control": NO_WRITES}
_OTHERS = ("#5b8c5a", "#8a6fb0", GREY, "#4f9da6")
LEAK = "leak by design: what is memorized holds the right answer"
WITHOUT_MODEL = (LENGTH_ONLY, MAJORITY)
_MOST_ROWS = 40
"""Metrics that one panel can show."""


def split(key: str) -> tuple[str, str, str]:
    """Task, metric and arm of a metric's key "task/metric/arm"; without task or arm they are empty."""
    parts = key.split("/")
    arm = parts.pop() if len(parts) > 2 or (len(parts) > 1 and parts[-1] in ARMS) else ""
    metric = parts.pop()
    return "/".join(parts), metric, arm


def color(arm: str) -> str:
    """The colour of an arm, the same in all plots."""
    return COLORS.get(arm) or _OTHERS[sum(arm.encode()) % len(_OTHERS)]


def metrics_figure(metrics: Mapping[str, Mapping[str, Any]]) -> Figure | None:
    """A panel for each kind of metric: a row a task, a colour an arm, bars for the 95 % intervals, a grey
    tick at chance; None without metrics. A panel shows the first 40 tasks."""
    panels: dict[str, dict[str, list[tuple[str, Mapping[str, Any]]]]] = {}
    for key, value in metrics.items():
        task, metric, arm = split(key)
        if value.get("value") is not None:
            panels.setdefault(metric, {}).setdefault(task or metric, []).append((arm, value))
    if not panels:
        return None
    panels = {name: dict(list(tasks.items())[:_MOST_ROWS]) for name, tasks in panels.items()}
    heights = [0.45 + 0.3 * len(tasks) for tasks in panels.values()]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 0.3 + sum(heights)), layout="constrained")
        grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, (metric, tasks) in zip(grid, panels.items(), strict=True):
            _panel(axes, metric, tasks)
        arms = dict.fromkeys(arm for tasks in panels.values() for rows in tasks.values() for arm, _ in rows)
        if len(arms) > 1:
            marks = [mpl.lines.Line2D([], [], color=color(arm), marker="o", label=arm) for arm in arms]
            figure.legend(handles=marks, loc="outside upper right", ncols=len(marks), frameon=False)
        mark_leak(figure, any(value.get("leak") for value in metrics.values()))
        return figure


def _panel(axes: Axes, metric: str, tasks: Mapping[str, Sequence[tuple[str, Mapping[str, Any]]]]) -> None:
    for row, found in enumerate(tasks.values()):
        shifts = 0.22 * (np.arange(len(found)) - (len(found) - 1) / 2)
        for shift, (arm, value) in zip(shifts, found, strict=True):
            low, high = value.get("ci95") or (value["value"], value["value"])
            axes.plot([low, high], [row + shift] * 2, color=color(arm), linewidth=1.6)
            axes.plot([value["value"]], [row + shift], "o", color=color(arm), markersize=3.5)
        chance = found[0][1].get("chance")
        if chance is not None:
            axes.plot([chance] * 2, [row - 0.4, row + 0.4], color=GREY, linewidth=1.0)
    axes.set_yticks(range(len(tasks)), list(tasks))
    axes.set_ylim(len(tasks) - 0.4, -0.6)
    axes.set_title(metric, loc="left")
    axes.tick_params(length=0, axis="y", labelcolor=INK)


def differences_figure(paired: Mapping[str, Mapping[str, Any]]) -> Figure | None:
    """Differences with their 95 % intervals, a panel for each kind of score; None without any."""
    panels: dict[str, dict[str, Mapping[str, Any]]] = {}
    for key, test in paired.items():
        task, metric, arm = split(key)
        panels.setdefault(metric, {})[" ".join(part for part in (task, arm) if part)] = test
    if not panels:
        return None
    panels = {name: dict(list(rows.items())[:_MOST_ROWS]) for name, rows in panels.items()}
    heights = [0.45 + 0.22 * len(rows) for rows in panels.values()]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 0.3 + sum(heights)), layout="constrained")
        grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, (metric, rows) in zip(grid, panels.items(), strict=True):
            axes.axvline(0, color=GREY, linewidth=1.0)
            for row, test in enumerate(rows.values()):
                low, high = test.get("ci95") or (test["delta"], test["delta"])
                axes.plot([low, high], [row] * 2, color=TRAIN, linewidth=1.6)
                axes.plot([test["delta"]], [row], "o", color=TRAIN, markersize=3.5)
            axes.set_yticks(range(len(rows)), list(rows))
            axes.set_ylim(len(rows) - 0.4, -0.6)
            axes.set_title(f"{metric}: checkpoint - baseline", loc="left")
            axes.tick_params(length=0, axis="y", labelcolor=INK)
        mark_leak(figure, any(test.get("leak") for test in paired.values()))
        return figure


def mark_leak(figure: Figure, leak: bool) -> None:
    """Writes into a plot that figures in it come from a leak."""
    if leak:
        figure.supxlabel(LEAK, x=0.995, color=HELD_OUT, fontsize=7, ha="right")  # the layout makes room
