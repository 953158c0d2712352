"""Figures of the long-context evaluations, drawn from an outcome's metrics."""

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hope_jax.evals.suite.run import BASELINE, CONTROL, MEMORIZED
from hope_jax.report.figures import FAINT, GREY, HELD_OUT, INK, NO_WRITES, TRAIN

_COLOURS = {BASELINE: TRAIN, MEMORIZED: HELD_OUT, CONTROL: NO_WRITES, "writes_on": TRAIN, "writes_off": GREY}
_TITLES = {
    "choice": "choice by likelihood",
    "match": "right answers in the text",
    "removed_choice": "choice, context removed",
}
_WIDTH = 3.1

Point = tuple[float, Mapping[str, Any]]


def accuracy_over_length(name: str, metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, Figure]:
    """A figure for each measure of `_TITLES`, a panel a task: the share right over length in tokens, a line
    an arm, with 95 % intervals and the level of chance. metrics: keys "task@length/field/arm"."""
    found: dict[str, dict[str, dict[str, list[Point]]]] = {}
    for key, metric in metrics.items():
        group, field, arm = key.split("/")
        task, length = group.split("@")
        if field in _TITLES:
            arms = found.setdefault(field, {}).setdefault(task, {})
            arms.setdefault(arm, []).append((float(length), metric))
    return {f"{name}_{field}": _panels(_TITLES[field], tasks) for field, tasks in found.items()}


def _panels(title: str, tasks: Mapping[str, Mapping[str, list[Point]]]) -> Figure:
    columns = min(4, len(tasks))
    rows = -(-len(tasks) // columns)
    figure = Figure(figsize=(_WIDTH * columns + 0.4, 2.4 * rows + 0.3), layout="constrained")
    for i, (task, arms) in enumerate(tasks.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        for number, (arm, points) in enumerate(arms.items()):
            line(axes, arm, points, number)
            chance = points[0][1].get("chance")
        if chance is not None:
            axes.axhline(chance, color=GREY, linestyle=":", linewidth=1, label="chance")
        axes.set_title(task, fontsize=8.5, color=INK)
        axes.set_ylim(-0.04, 1.04)
        if i % columns == 0:
            axes.set_ylabel(title, fontsize=8, color=GREY)
        if i // columns == rows - 1:
            axes.set_xlabel("length in tokens", fontsize=8, color=GREY)
        if not i:
            axes.legend(frameon=False, fontsize=7)
    return figure


def loss_over_position(groups: Mapping[str, Mapping[str, list[Point]]]) -> Figure:
    """Nats per token over the position in a text, a panel a group, a line an arm, with 95 % intervals."""
    figure = Figure(figsize=(2 * _WIDTH * len(groups) + 0.4, 3.0), layout="constrained")
    for i, (title, arms) in enumerate(groups.items()):
        axes = figure.add_subplot(1, len(groups), i + 1)
        for number, (arm, points) in enumerate(arms.items()):
            line(axes, arm, points, number)
        axes.set_title(title, fontsize=8.5, color=INK)
        axes.set_xlabel("tokens before", fontsize=8, color=GREY)
        axes.set_ylabel("nats per token", fontsize=8, color=GREY)
        axes.legend(frameon=False, fontsize=7)
    return figure


def line(axes: Axes, arm: str, points: list[Point], number: int) -> None:
    """Values over a logarithmic axis, with their intervals where there are any. number: of the line in its
    panel; later ones stand a little to the right, or equal ones would hide each other."""
    ordered = sorted(points, key=lambda point: point[0])
    places = [max(at, 8) for at, _ in ordered]
    x, values = [place * 2 ** (0.05 * number) for place in places], [metric["value"] for _, metric in ordered]
    bounds = [metric["ci95"] or [metric["value"]] * 2 for _, metric in ordered]
    spread = [
        [max(value - low, 0.0) for value, (low, _) in zip(values, bounds, strict=True)],
        [max(high - value, 0.0) for value, (_, high) in zip(values, bounds, strict=True)],
    ]
    colour = _COLOURS.get(arm)
    axes.errorbar(x, values, yerr=spread, label=arm, color=colour, marker="o", markersize=3, capsize=2)
    axes.set_xscale("log", base=2)
    axes.set_xticks(places, [f"{at:g}" for at, _ in ordered], rotation=45 if len(places) > 6 else 0)
    axes.minorticks_off()
    axes.grid(True, color=FAINT, linewidth=0.5)
    axes.tick_params(labelsize=7, colors=GREY)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
