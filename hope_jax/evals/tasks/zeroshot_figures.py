"""The zero-shot evaluation in pictures: each task's arms with their intervals, beside chance and length."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hope_jax.evals.suite.run import ARMS
from hope_jax.evals.tasks.zeroshot_metrics import LENGTH_ONLY, MAJORITY

_MARKS = {LENGTH_ONLY: ("x", "by length alone"), MAJORITY: ("+", "most frequent answer")}


def figures(outcome: Mapping[str, Any]) -> dict[str, Figure]:
    """A figure for each of "acc" and "acc_norm" that the outcome has, by name."""
    return {
        f"zeroshot_{metric}": _shares(metric, found)
        for metric in ("acc", "acc_norm")
        if (found := _by_task(outcome["metrics"], metric))
    }


def _by_task(metrics: Mapping[str, Any], metric: str) -> dict[str, dict[str, Any]]:
    """Task -> arm -> value, of one metric."""
    found: dict[str, dict[str, Any]] = {}
    for key, value in metrics.items():
        task, name, arm = key.split("/")
        if name == metric:
            found.setdefault(task, {})[arm] = value
    return found


def _shares(metric: str, tasks: Mapping[str, Mapping[str, Any]]) -> Figure:
    figure = Figure(figsize=(1.5 + 1.1 * len(tasks), 4), layout="constrained")
    axes = figure.subplots()
    arms = [arm for arm in ARMS if any(arm in found for found in tasks.values())]
    width = 0.8 / len(arms)
    for i, arm in enumerate(arms):
        at = [
            (n - 0.4 + width * (i + 0.5), found[arm])
            for n, found in enumerate(tasks.values())
            if arm in found
        ]
        values = np.array([value["value"] for _, value in at])
        bounds = np.array([value["ci95"] for _, value in at]).T
        errors = np.abs(bounds - values)
        axes.bar([x for x, _ in at], values, width, yerr=errors, capsize=3, label=arm)
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
