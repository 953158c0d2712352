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
Lines = Mapping[str, Sequence[tuple[float, Metric]]]
"""Arm -> place and metric of its points."""


def split(key: str) -> tuple[str, str, str]:
    """Task, metric and arm of a metric's key "task/metric/arm"; without task or arm they are empty."""
    parts = key.split("/")
    arm = parts.pop() if len(parts) > 2 or (len(parts) > 1 and parts[-1] in ARMS) else ""
    metric = parts.pop()
    return "/".join(parts), metric, arm


def color(arm: str) -> str:
    """The colour of an arm, the same in all plots."""
    return COLORS.get(arm) or _OTHERS[sum(arm.encode()) % len(_OTHERS)]


@mpl.rc_context(STYLE)
def metrics_figure(metrics: Metrics, what: str = "") -> Figure | None:
    """A panel for each kind of metric (of `what`): a row a task, a colour an arm, bars for the 95 %
    intervals, a grey tick at chance; None without metrics. A panel shows the first 40 tasks."""
    panels: dict[str, dict[str, list[tuple[str, Metric]]]] = {}
    for key, value in metrics.items():
        task, metric, arm = split(key)
        if value.get("value") is not None:
            panels.setdefault(f"{metric}{what}", {}).setdefault(task or metric, []).append((arm, value))
    if not panels:
        return None
    shown = {title: list(rows.items())[:_MOST_ROWS] for title, rows in panels.items()}
    heights = [0.45 + 0.3 * len(rows) for rows in shown.values()]
    figure = Figure(figsize=(9.2, 0.3 + sum(heights)), layout="constrained")
    grid = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (title, rows) in zip(grid, shown.items(), strict=True):
        for row, (_, found) in enumerate(rows):
            shifts = 0.22 * (np.arange(len(found)) - (len(found) - 1) / 2)
            for shift, (arm, value) in zip(shifts, found, strict=True):
                bounds = value.get("ci95") or [value["value"]] * 2
                axes.plot(bounds, [row + shift] * 2, color=color(arm), linewidth=1.6)
                axes.plot([value["value"]], [row + shift], "o", color=color(arm), markersize=3.5)
            if (chance := found[0][1].get("chance")) is not None:
                axes.plot([chance] * 2, [row - 0.4, row + 0.4], color=GREY, linewidth=1.0)
        axes.set_yticks(range(len(rows)), [task for task, _ in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_title(title, loc="left")
        axes.tick_params(length=0, axis="y", labelcolor=INK)
    arms = dict.fromkeys(arm for rows in panels.values() for found in rows.values() for arm, _ in found)
    _legend(figure, {arm: color(arm) for arm in arms})
    return figure


def differences_figure(paired: Metrics) -> Figure | None:
    """Differences as metrics, of which no difference is the chance; None without any."""
    values = {key: {**test, "value": test["delta"], "chance": 0.0} for key, test in paired.items()}
    return metrics_figure(values, ": checkpoint - baseline")


def headlines(found: Mapping[str, Metrics], wanted: Sequence[str] = ()) -> dict[str, dict[str, str]]:
    """What a plot over checkpoints shows: a panel "task/metric" -> a line for each arm -> the metric's key.
    Panels are those that `wanted` names as "task/metric" or, of any task, "metric"; without any, all of the
    first metric. Of these, in order, as many as have six lines together, of the first six at most. Arms
    without a model are none. found: name of a checkpoint -> its metrics."""
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
    """Metrics of several checkpoints. found: name of a checkpoint -> its metrics. shown: see `headlines`.
    steps: of the checkpoints, the horizontal axis; None: they are of several runs, and stand side by side."""
    places: dict[str, float] = {who: steps[who] if steps else i for i, who in enumerate(found)}
    order = sorted(found, key=places.__getitem__)

    def points(key: str) -> list[tuple[float, Metric]]:
        there = {who: found[who][key] for who in order if key in found[who]}
        return [(places[who], metric) for who, metric in there.items() if metric.get("value") is not None]

    panels = {panel: {arm: points(key) for arm, key in arms.items()} for panel, arms in shown.items()}
    ticks = None if steps else {place: who for who, place in places.items()}
    return lines_figure(panels, "step" if steps else "", "", columns=3, ticks=ticks, joined=bool(steps))


@mpl.rc_context(STYLE)
def lines_figure(
    panels: Mapping[str, Lines],
    x: str,
    y: str,
    *,
    columns: int = 4,
    ticks: Mapping[float, str] | None = None,
    joined: bool = True,
    shares: bool = False,
    log: bool = False,
) -> Figure:
    """A panel a title, a line an arm, with 95 % intervals where there are any, and a dotted line at chance.
    x, y: labels of the axes. ticks: names of places. joined: points by lines. shares: values are from 0 to 1.
    log: places are on a logarithmic axis. Arms stand a little apart, or equal ones would hide each other."""
    colors: dict[str, str] = {}
    for arm in dict.fromkeys(arm for lines in panels.values() for arm in lines):
        all_of = (color(arm), *_OTHERS, *COLORS.values())  # each another as long as there are
        colors[arm] = next((each for each in all_of if each not in colors.values()), color(arm))
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(9.2, 0.3 + 2.6 * rows), layout="constrained")
    for number, (title, lines) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, number + 1)
        _draw_lines(axes, lines, colors, "-" if joined else "", log)
        axes.set_title(title, loc="left")
        axes.set(xlabel=x, ylabel=y if number % columns == 0 else "")
        if ticks is None:
            axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(5, integer=True))
        else:
            axes.set_xticks(list(ticks), list(ticks.values()), rotation=20, ha="right")
            axes.minorticks_off()
        if shares:
            axes.set_ylim(-0.05, 1.05)
    _legend(figure, colors)
    return figure


def _draw_lines(axes: Axes, lines: Lines, colors: Mapping[str, str], dash: str, log: bool) -> None:
    points = [point for own in lines.values() for point in own]
    places = [place for place, _ in points] or [0.0]
    gap = 0.012 * (max(places) - min(places))
    if log:
        axes.set_xscale("log", base=2)
    for i, (arm, own) in enumerate(lines.items()):
        shift = i - (len(lines) - 1) / 2
        at = [place * 2 ** (0.05 * shift) if log else place + gap * shift for place, _ in own]
        values = np.array([metric["value"] for _, metric in own], float)
        bounds = [metric.get("ci95") or [metric["value"]] * 2 for _, metric in own]
        low, high = np.array(bounds, float).reshape(-1, 2).T
        spread, marker = np.maximum([values - low, high - values], 0.0), "o" if len(own) < 50 else ""
        axes.errorbar(at, values, spread, color=colors[arm], linestyle=dash, marker=marker, markersize=3.5)
    chance = next((metric["chance"] for _, metric in points if metric.get("chance") is not None), None)
    if chance is not None:
        axes.axhline(chance, color=GREY, linewidth=1.0, linestyle=":")


def _legend(figure: Figure, colors: Mapping[str, str]) -> None:
    """Names the arms, if there are several, above the panels."""
    if len(colors) > 1:
        marks = [mpl.lines.Line2D([], [], color=each, marker="o", label=arm) for arm, each in colors.items()]
        figure.legend(handles=marks, loc="outside upper right", ncols=len(marks), frameon=False)


def mark_leak(figure: Figure) -> None:
    """Writes into a plot that figures in it come from a leak."""
    figure.supxlabel(LEAK, x=0.995, color=HELD_OUT, fontsize=7, ha="right")  # the layout makes room
