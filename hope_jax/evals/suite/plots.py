"""Plots of results: metrics with their intervals by arm, and differences from a baseline."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hope_jax.evals.suite.run import ARMS, BASELINE, CONTROL, MEMORIZED
from hope_jax.report.figures import GREY, HELD_OUT, INK, NO_WRITES, STYLE, TRAIN

COLORS = {"": TRAIN, BASELINE: TRAIN, MEMORIZED: HELD_OUT, CONTROL: NO_WRITES}
_OTHERS = ("#5b8c5a", "#8a6fb0", GREY, "#4f9da6")
LEAK = "leak by design: what is memorized holds the right answer"
LENGTH_ONLY, MAJORITY = WITHOUT_MODEL = ("length_only", "majority_class")
"""Arms without a model: log p = -bytes of the continuation; always the most frequent answer."""
_MOST_LINES = 6
_MOST_ROWS = 40
"""Metrics that one panel can show."""

Metric = Mapping[str, Any]
Metrics = Mapping[str, Metric]


def split(key: str) -> tuple[str, str, str]:
    """Task, metric and arm of a metric's key "task/metric/arm"; without task or arm they are empty."""
    parts = key.split("/")
    arm = parts.pop() if len(parts) > 2 or (len(parts) > 1 and parts[-1] in ARMS) else ""
    metric = parts.pop()
    return "/".join(parts), metric, arm


def color(arm: str) -> str:
    """The colour of an arm, the same in all plots."""
    return COLORS.get(arm) or _OTHERS[sum(arm.encode()) % len(_OTHERS)]


def metrics_figure(metrics: Metrics) -> Figure | None:
    """A panel for each kind of metric: a row a task, a colour an arm, bars for the 95 % intervals, a grey
    tick at chance; None without metrics. A panel shows the first 40 tasks."""
    panels: dict[str, dict[str, list[tuple[str, Metric]]]] = {}
    for key, value in metrics.items():
        task, metric, arm = split(key)
        if value.get("value") is not None:
            panels.setdefault(metric, {}).setdefault(task or metric, []).append((arm, value))
    arms = dict.fromkeys(arm for tasks in panels.values() for rows in tasks.values() for arm, _ in rows)
    figure = _rows_figure(panels, 0.3)
    if figure is not None:
        with mpl.rc_context(STYLE):
            _legend(figure, {arm: color(arm) for arm in arms})
            mark_leak(figure, any(value.get("leak") for value in metrics.values()))
    return figure


def differences_figure(paired: Metrics) -> Figure | None:
    """Differences with their 95 % intervals, a panel for each kind of score; None without any."""
    panels: dict[str, dict[str, list[tuple[str, Metric]]]] = {}
    for key, test in paired.items():
        task, metric, arm = split(key)
        row = panels.setdefault(f"{metric}: checkpoint - baseline", {})
        row[" ".join(part for part in (task, arm) if part)] = [("", {**test, "value": test["delta"]})]
    figure = _rows_figure(panels, 0.22)
    if figure is not None:
        for axes in figure.axes:
            axes.axvline(0, color=GREY, linewidth=1.0, zorder=1)
        with mpl.rc_context(STYLE):
            mark_leak(figure, any(test.get("leak") for test in paired.values()))
    return figure


def _rows_figure(
    panels: Mapping[str, Mapping[str, Sequence[tuple[str, Metric]]]], height: float
) -> Figure | None:
    """A panel for each kind of metric, a row of that height for each task with (arm, metric) each."""
    if not panels:
        return None
    panels = {name: dict(list(rows.items())[:_MOST_ROWS]) for name, rows in panels.items()}
    heights = [0.45 + height * len(rows) for rows in panels.values()]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 0.3 + sum(heights)), layout="constrained")
        grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, (title, rows) in zip(grid, panels.items(), strict=True):
            for row, found in enumerate(rows.values()):
                shifts = 0.22 * (np.arange(len(found)) - (len(found) - 1) / 2)
                for shift, (arm, value) in zip(shifts, found, strict=True):
                    bounds = value.get("ci95") or [value["value"]] * 2
                    axes.plot(bounds, [row + shift] * 2, color=color(arm), linewidth=1.6)
                    axes.plot([value["value"]], [row + shift], "o", color=color(arm), markersize=3.5)
                if (chance := found[0][1].get("chance")) is not None:
                    axes.plot([chance] * 2, [row - 0.4, row + 0.4], color=GREY, linewidth=1.0)
            axes.set_yticks(range(len(rows)), list(rows))
            axes.set_ylim(len(rows) - 0.4, -0.6)
            axes.set_title(title, loc="left")
            axes.tick_params(length=0, axis="y", labelcolor=INK)
        return figure


def headlines(found: Mapping[str, Metrics], wanted: Sequence[str] = ()) -> dict[str, dict[str, str]]:
    """What a plot over checkpoints shows: a panel "task/metric" -> a line for each arm -> the metric's key.

    Panels are those that `wanted` names as "task/metric" or, of any task, "metric"; without any, all of the
    first metric. Of these, in order, as many as have six lines together, of the first six at most. Arms
    without a model are none. found: name of a checkpoint -> its metrics.
    """
    panels: dict[str, dict[str, str]] = {}
    for key in (key for metrics in found.values() for key in metrics):
        task, metric, arm = split(key)
        if arm not in WITHOUT_MODEL:
            panels.setdefault(f"{task}/{metric}" if task else metric, {})[arm] = key
    firsts = [panel.rpartition("/")[2] for panel in panels][:1]
    named = [panel for want in wanted for panel in panels if want in (panel, panel.rpartition("/")[2])]
    chosen = named or [panel for panel in panels if panel.rpartition("/")[2] in firsts]
    shown: dict[str, dict[str, str]] = {}
    left = _MOST_LINES
    for panel in chosen:
        arms = dict(list(panels[panel].items())[:_MOST_LINES])
        left -= len(arms)
        if left < 0:
            break
        shown[panel] = arms
    return shown


def checkpoints_figure(
    found: Mapping[str, Metrics],
    shown: Mapping[str, Mapping[str, str]],
    steps: Mapping[str, int] | None = None,
) -> Figure:
    """Metrics of several checkpoints with their 95 % intervals, and a grey line at chance.

    found: name of a checkpoint -> its metrics. shown: see `headlines`. steps: of the checkpoints, the
    horizontal axis; None: they are of several runs, and stand side by side.
    """
    colors: dict[str, str] = {}
    for arm in dict.fromkeys(arm for arms in shown.values() for arm in arms):
        all_of = (color(arm), *_OTHERS, *COLORS.values())  # each another as long as there are
        colors[arm] = next((each for each in all_of if each not in colors.values()), color(arm))
    places = {who: steps[who] if steps else number for number, who in enumerate(found)}
    span = max(places.values()) - min(places.values())
    gap = 0.012 * span if steps else 0.06  # or equal ones would hide each other
    columns = min(len(shown), 3)
    rows = -(-len(shown) // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 0.3 + 2.6 * rows), layout="constrained")
        for number, (panel, arms) in enumerate(shown.items(), 1):
            axes = figure.add_subplot(rows, columns, number)
            for i, (arm, key) in enumerate(arms.items()):
                values = {places[who]: metrics[key] for who, metrics in found.items() if key in metrics}
                _points(axes, values, gap * (i - (len(arms) - 1) / 2), colors[arm], "-" if steps else "")
            axes.set_title(panel, loc="left")
            if steps:
                axes.set_xlabel("step")
                axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(5, integer=True))
            else:
                axes.set_xticks(list(places.values()), list(places), rotation=20, ha="right")
                axes.set_xlim(-0.5, len(places) - 0.5)
        _legend(figure, colors)
        keys = [key for arms in shown.values() for key in arms.values()]
        mark_leak(figure, any(metrics.get(key, {}).get("leak") for metrics in found.values() for key in keys))
        return figure


def _points(axes: Axes, found: Mapping[int, Metric], shift: float, shade: str, dash: str) -> None:
    """An arm's values with their intervals by place, joined by a line if `dash` is one."""
    there = {at: value for at, value in sorted(found.items()) if value.get("value") is not None}
    for at, value in there.items():
        axes.plot([at + shift] * 2, value.get("ci95") or [value["value"]] * 2, color=shade, linewidth=1.2)
    middle = [value["value"] for value in there.values()]
    axes.plot([at + shift for at in there], middle, color=shade, linestyle=dash, marker="o", markersize=3.5)
    chance = next((value["chance"] for value in there.values() if value.get("chance") is not None), None)
    if chance is not None:
        axes.axhline(chance, color=GREY, linewidth=1.0, linestyle=":")


def _legend(figure: Figure, colors: Mapping[str, str]) -> None:
    """Names the arms, if there are several, above the panels."""
    if len(colors) > 1:
        marks = [mpl.lines.Line2D([], [], color=each, marker="o", label=arm) for arm, each in colors.items()]
        figure.legend(handles=marks, loc="outside upper right", ncols=len(marks), frameon=False)


def mark_leak(figure: Figure, leak: bool) -> None:
    """Writes into a plot that figures in it come from a leak."""
    if leak:
        figure.supxlabel(LEAK, x=0.995, color=HELD_OUT, fontsize=7, ha="right")  # the layout makes room
