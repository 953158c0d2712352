"""Figures of a run, drawn from the rows of its `metrics.jsonl` (matplotlib, no display needed)."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.signal import lfilter

Row = Mapping[str, Any]

INK, GREY, FAINT = "#22303c", "#7a8691", "#d5dbe0"
TRAIN, HELD_OUT, NO_WRITES = "#3b6ea8", "#c8553d", "#e0a458"
STYLE: Any = {
    "font.size": 8.0,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.labelcolor": GREY,
    "axes.edgecolor": FAINT,
    "axes.titlesize": 8.5,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#eef1f3",
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": GREY,
    "ytick.labelcolor": GREY,
    "lines.linewidth": 1.4,
    "svg.hashsalt": "hope_jax",  # the same rows give the same file
}
_STATISTICS = {
    "grad_norm": "write gradient norm",
    "updates_applied": "updates applied",
    "gate_hit": "gate hits",
    "surprise_value": "surprise",
    "write_clip_hits": "write-clip hits",
    "delta_clip_hits": "delta-clip hits",
    "delta_norm": "written / slow norm",
}
_MAX_POINTS = 400
GOAL = 0.85
"""Share of the unigram entropy that a first run on the embedded corpus should reach."""


def _series(rows: Sequence[Row], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps [n] and values ([n] or [n, L]) of the rows that have a value under `key`, thinned for drawing."""
    pairs = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    stride = max(1, -(-len(pairs) // _MAX_POINTS))
    kept = pairs[::-1][::stride][::-1]
    return np.array([s for s, _ in kept]), np.array([v for _, v in kept], dtype=float)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Exponential average over about a thirtieth of the points, debiased at the start."""
    keep = max(0.0, 1.0 - 2.0 / (1.0 + len(values) / 30.0))
    return lfilter([1 - keep], [1, -keep], values) / (1 - keep ** np.arange(1, len(values) + 1))


def _line(axes: Axes, x: np.ndarray, y: np.ndarray, **style: Any) -> None:
    """A line, or dots where there are too few points for one to be seen."""
    if len(x):
        axes.plot(x, y, marker="o" if len(x) < 3 else None, markersize=4, **style)


def _finish(axes: Axes, title: str = "", ticks: int = 5) -> None:
    if title:
        axes.set_title(title, loc="left")
    axes.xaxis.set_major_locator(MaxNLocator(ticks, integer=True))
    axes.tick_params(length=2.5)


@mpl.rc_context(STYLE)
def loss_figure(rows: Sequence[Row]) -> Figure:
    """Training and held-out loss over steps, with the unigram entropy and 0.85 of it as marks."""
    figure = Figure(figsize=(9.2, 3.9), layout="constrained")
    axes = figure.subplots()
    steps, loss = _series(rows, "loss")
    axes.plot(steps, loss, color=TRAIN, alpha=0.25, linewidth=0.9)
    if len(steps):
        _line(axes, steps, _smooth(loss), color=TRAIN, label="training")
    axes.plot(*_series(rows, "eval_loss"), color=HELD_OUT, marker="o", markersize=3, label="held out")
    steps, loss = _series(rows, "eval_loss_no_writes")
    if len(steps):  # rings and dashes on top: both lines show where they are one
        rings: Any = {"marker": "o", "markersize": 7, "markerfacecolor": "none", "linestyle": (0, (2, 3))}
        axes.plot(steps, loss, color=NO_WRITES, label="held out, no writes", **rings)
    entropy = next((r["unigram_entropy"] for r in rows[::-1] if r.get("unigram_entropy")), None)
    if entropy:
        for value, text, dash in (
            (entropy, f"unigram entropy {entropy:.3f}", "-"),
            (GOAL * entropy, f"{GOAL} × {entropy:.3f} = {GOAL * entropy:.3f}", ":"),
        ):
            axes.axhline(value, color=GREY, linewidth=1.0, linestyle=dash)
            axes.annotate(
                text, (1.0, value), xycoords=("axes fraction", "data"), xytext=(-4, 3),
                textcoords="offset points", ha="right", color=GREY,
            )  # fmt: skip
    axes.set(xlabel="step", ylabel="cross-entropy, nats per token")
    _finish(axes)
    axes.legend(frameon=False, loc="upper right", bbox_to_anchor=(1.0, 1.02), ncols=3)
    axes.margins(y=0.12)
    return figure


@mpl.rc_context(STYLE)
def health_figure(rows: Sequence[Row]) -> Figure:
    """Learning rate, gradient norm, teach-signal norm and throughput over steps."""
    panels = {
        "lr": "learning rate",
        "grad_norm": "gradient norm",
        "teach_signal_norm": "teach-signal norm",
        "tokens_per_sec": "tokens per second",
    }
    figure = Figure(figsize=(9.2, 1.75), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        _line(axes, *_series(rows, key), color=TRAIN)
        axes.set_ylim(bottom=0)
        _finish(axes, title)
    return figure


@mpl.rc_context(STYLE)
def effect_figure(rows: Sequence[Row]) -> Figure | None:
    """What writes change in the held-out loss, and the share of periods that each level has written there;
    None where no evaluation has written."""
    seen = [row for row in rows if None not in (row.get("eval_loss"), row.get("eval_loss_no_writes"))]
    if not seen:
        return None
    effect = [{"step": row["step"], "effect": row["eval_loss"] - row["eval_loss_no_writes"]} for row in seen]
    shares = [
        {"step": row["step"]}
        | {name: float(np.mean(x["periods_written"])) for name, x in (row.get("eval_writes") or {}).items()}
        for row in seen
    ]
    levels = list(dict.fromkeys(name for row in shares for name in row if name != "step"))
    figure = Figure(figsize=(9.2, 2.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.axhline(0, color=GREY, linewidth=1.0)
    left.plot(*_series(effect, "effect"), color=HELD_OUT, marker="o", markersize=3)
    for name, color in zip(levels, layer_colors(len(levels)), strict=True):
        right.plot(*_series(shares, name), color=color, marker="o", markersize=3, label=name)
    right.set_ylim(-0.05, 1.05)
    if levels:
        right.legend(frameon=False, ncols=2, fontsize=7)
    _finish(left, "held-out loss with writes less without, nats per token")
    _finish(right, "share of periods written, held out")
    return figure


def write_levels(rows: Sequence[Row]) -> list[str]:
    """Names of the levels with write statistics, in the order of the rows."""
    return list(dict.fromkeys(level for row in rows for level in row.get("writes", {})))


@mpl.rc_context(STYLE)
def writes_figure(rows: Sequence[Row]) -> Figure | None:
    """Small multiples: a row of panels per level, a column per statistic, a line per layer; None if none."""
    levels = write_levels(rows)
    present = {s for row in rows for level in row.get("writes", {}).values() for s in level}
    names = [name for name in _STATISTICS if name in present]
    if not names:
        return None
    figure = Figure(figsize=(9.2, 0.75 + 1.25 * len(levels)), layout="constrained")
    grid = figure.subplots(len(levels), len(names), squeeze=False, sharex=True)
    layers = 1
    for level, row_axes in zip(levels, grid, strict=True):
        own = [{"step": row["step"], **row.get("writes", {}).get(level, {})} for row in rows]
        for name, axes in zip(names, row_axes, strict=True):
            steps, values = _series(own, name)
            if not len(steps):
                axes.set_axis_off()
                continue
            layers = max(layers, values.shape[1])
            for layer, color in enumerate(layer_colors(values.shape[1])):
                _line(axes, steps, values[:, layer], color=color, linewidth=0.9)
            _finish(axes, ticks=2)
            axes.yaxis.set_major_locator(MaxNLocator(3))
            axes.tick_params(length=2, labelsize=7)
            finite = values[np.isfinite(values)]
            if finite.size and finite.max() <= 0:
                axes.set_ylim(-0.05, 1)
            elif finite.size and finite.min() >= 0:
                axes.set_ylim(bottom=0)
        row_axes[0].set_ylabel(level, color=INK, fontsize=8.5)
    for name, axes in zip(names, grid[0], strict=True):
        axes.set_title(_STATISTICS[name], loc="left", fontsize=8)
    figure.align_ylabels(grid[:, 0])
    if layers > 1:
        scale = mpl.cm.ScalarMappable(mpl.colors.Normalize(0, layers - 1), layer_map())
        bar = figure.colorbar(scale, ax=grid, location="bottom", aspect=60, shrink=0.35, pad=0.03)
        bar.set_label("layer")
        bar.locator = MaxNLocator(min(layers, 8), integer=True)
        bar.outline.set_visible(False)
    return figure


def layer_map() -> mpl.colors.Colormap:
    """Colours from the first layer (dark) to the last (light), without the palest end."""
    return mpl.colors.ListedColormap(mpl.colormaps["viridis"](np.linspace(0.05, 0.85, 256)))


def layer_colors(count: int) -> np.ndarray:
    """RGBA [count, 4]."""
    return layer_map()(np.linspace(0, 1, count)) if count > 1 else np.array([mpl.colors.to_rgba(TRAIN)])


def as_data_uri(figure: Figure) -> str:
    """The figure as an SVG that a page can hold as an image."""
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def save_png(figure: Figure, path: Path) -> None:
    """The figure as a PNG file."""
    with mpl.rc_context(STYLE):
        figure.savefig(path, dpi=150)
