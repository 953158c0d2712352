"""`report.html` and `loss.png` of a run, from its `metrics.jsonl` and `summary.json` alone."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hope_jax.core import files
from hope_jax.core.errors import DataError
from hope_jax.report import figures, page
from hope_jax.training.alarms import is_idle

Row = Mapping[str, Any]

_ESSENTIALS = (
    "model.block_variant", "model.style", "model.dim", "model.num_layers", "model.heads", "model.vocab_size",
    "data.source", "data.seq_len", "data.batch_size", "train.algorithm_mode", "train.online_chunk_size",
    "train.steps", "train.seed", "train.compute_dtype", "optim.name", "optim.lr", "memory.scope",
    "memory.lifetime", "teach.scale", "teach.clip", "memory.surprise_threshold",
)  # fmt: skip


def write_report(workdir: Path) -> None:
    """Write `report.html` and `loss.png` into a run's folder.
    Raises: DataError if the folder lacks `summary.json` or rows in `metrics.jsonl`."""
    rows = files.read_rows(workdir / files.METRICS_FILE)
    path = workdir / files.SUMMARY_FILE
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); run the training again") from error
    if rows:
        figures.save_png(figures.loss_figure(rows), workdir / files.LOSS_FILE)
    files.write_atomic(workdir / files.REPORT_FILE, render(summary, rows))


def render(summary: Row, rows: Sequence[Row]) -> str:
    """The report as one HTML page without outside references. summary: contents of `summary.json`. rows: of
    `metrics.jsonl`."""
    variant = summary.get("config", {}).get("model", {}).get("block_variant", "")
    sub = f"{variant} · {summary.get('steps')} steps · {summary.get('device', '')}"
    parts = [*_warnings(summary, rows), _tiles(summary), *_curves(rows), *_writes(rows)]
    if summary.get("samples"):
        note = (
            "Grey: prompts from the start of held-out rows. Black: the model's continuation at temperature "
            "0.8, the first draw, not selected."
        )
        quotes = page.Quotes([(sample["prompt"], sample["text"]) for sample in summary["samples"]])
        parts += [page.Heading("Generated lines"), quotes, page.Note(note)]
    return page.html(str(summary.get("name", "run")), sub, [*parts, *_run(summary)])


def _warnings(summary: Row, rows: Sequence[Row]) -> Iterator[page.Block]:
    if summary.get("interrupted"):
        yield page.Warn(
            f"Interrupted after step {summary.get('steps')}; the same command continues the run. There is no "
            "final evaluation yet."
        )
    raised = [row for row in rows if row.get("alarm")]
    for kind in (False, True):
        alarms = [f"step {row['step']}: {row['alarm']}" for row in raised if is_idle(row["alarm"]) == kind]
        if alarms:
            yield page.Warn(f"{len(alarms)} rows with an alarm, the first at {alarms[0]}")


def _tiles(summary: Row) -> page.Tiles:
    loss, entropy = summary.get("eval_loss"), summary.get("unigram_entropy")
    plain, share = summary.get("eval_loss_no_writes"), summary.get("periods_written")
    peak = summary.get("share_of_peak")
    tiles = {"held-out loss, nats per token": page.number(loss)}
    if loss is not None and plain is not None:
        tiles[f"nats by memory writes: {page.number(plain)} without"] = f"{loss - plain:+.4f}"
    if share is not None:
        threshold = summary.get("config", {}).get("memory", {}).get("surprise_threshold")
        tiles[f"of periods written, surprise_threshold={threshold}"] = f"{share:.1%}"
    ratio = f"{loss / entropy:.3f}" if loss is not None and entropy else "–"
    tiles[f"of unigram entropy {page.number(entropy)}"] = ratio
    tiles["held-out perplexity"] = page.number(summary.get("perplexity"))
    tiles["tokens per second"] = page.number(summary.get("tokens_per_sec"))
    tiles["of the measured matmul peak"] = "–" if peak is None else f"{peak:.1%}"
    tiles["training time"] = page.duration(summary.get("train_seconds"))
    return page.Tiles(tiles)


def _curves(rows: Sequence[Row]) -> list[page.Block]:
    note = (
        "Training loss is of the logged batch (faint) and smoothed (bold). Held-out loss is over the same "
        "documents each time, which are never trained on. The unigram entropy is that of the held-out "
        "targets themselves: a model that knew only the token frequencies of exactly this text would score "
        f"it. The dotted line is {figures.GOAL} of it. Lower shows use of context; it is no measure of the "
        "quality of the text."
    )
    return [
        page.Heading("Loss"),
        page.Plot("loss", figures.loss_figure(rows), "Training and held-out loss over steps"),
        page.Note(note),
        page.Plot("health", figures.health_figure(rows), "Learning rate, norms and throughput"),
    ]


def _writes(rows: Sequence[Row]) -> Iterator[page.Block]:
    yield page.Heading("Memory updates")
    figure, effect = figures.writes_figure(rows), figures.effect_figure(rows)
    if figure is None:
        yield page.Note("This variant has no memories, so nothing was written.")
        return
    if effect is not None:
        yield page.Plot("effect", effect, "Effect of writes on held-out text")
    yield page.Plot("writes", figure, f"Write statistics of {', '.join(figures.write_levels(rows))}")
    yield page.Note(
        "What each level wrote in the logged steps, one line a layer. A level whose updates stay at zero has "
        "learned nothing at test time; clip hits say that the bounds, not the optimizer, set the size of a "
        "write. All statistics at the last logged step (mean over layers):"
    )
    last: Row = next((row["writes"] for row in reversed(rows) if row.get("writes")), {})
    names = list(dict.fromkeys(name for level in last.values() for name in level))
    yield page.Table(
        ["level", *names],
        [[level, *(_mean(stats.get(name)) for name in names)] for level, stats in last.items()],
    )


def _mean(values: Sequence[float | None] | None) -> str:
    numbers = [value for value in values or () if value is not None]
    return page.number(sum(numbers) / len(numbers) if numbers else None, 3)


def _run(summary: Row) -> Iterator[page.Block]:
    config = files.flatten(summary.get("config", {}))
    yield page.Heading("Run")
    yield page.Values({key: config[key] for key in _ESSENTIALS if key in config})
    yield page.Values(
        {
            "steps": summary.get("steps"),
            "tokens": summary.get("tokens"),
            "parameters": summary.get("parameters"),
            "last training loss": summary.get("loss"),
            "held-out loss without writes": summary.get("eval_loss_no_writes"),
            "share of periods written, held out": summary.get("periods_written"),
            "training time": page.duration(summary.get("train_seconds")),
            "first step, compilation included": page.duration(summary.get("compile_seconds")),
            "device": summary.get("device"),
            **summary.get("versions", {}),
        }
    )
    if summary.get("notes"):
        yield page.Folded("Notes of the run", "\n".join(map(str, summary["notes"])))
    yield page.Folded("Whole configuration", "\n".join(f"{key}: {value}" for key, value in config.items()))
