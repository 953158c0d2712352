"""`report.html` and `loss.png` of a run, from its `metrics.jsonl` and `summary.json` alone."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from hope_jax.core.errors import DataError
from hope_jax.core.files import (
    LOSS_FILE,
    METRICS_FILE,
    REPORT_FILE,
    SUMMARY_FILE,
    flatten,
    read_rows,
    write_atomic,
)
from hope_jax.report import page
from hope_jax.report.figures import (
    GOAL,
    as_data_uri,
    effect_figure,
    health_figure,
    loss_figure,
    save_png,
    write_levels,
    writes_figure,
)
from hope_jax.training.health import is_idle

_ESSENTIALS = (
    "model.block_variant", "model.style", "model.dim", "model.num_layers", "model.heads", "model.vocab_size",
    "data.source", "data.seq_len", "data.batch_size", "train.algorithm_mode", "train.online_chunk_size",
    "train.steps", "train.seed", "train.compute_dtype", "optim.name", "optim.lr", "memory.scope",
    "memory.lifetime", "teach.scale", "teach.clip", "memory.surprise_threshold",
)  # fmt: skip


def _tiles(summary: Mapping[str, Any]) -> str:
    loss, entropy = summary.get("eval_loss"), summary.get("unigram_entropy")
    ratio = loss / entropy if loss is not None and entropy else None
    share = summary.get("share_of_peak")
    values = {
        "held-out loss, nats per token": page.number(loss),
        **_writes_tiles(summary),
        f"of unigram entropy {page.number(entropy)}": "–" if ratio is None else f"{ratio:.3f}",
        "held-out perplexity": page.number(summary.get("perplexity")),
        "tokens per second": page.number(summary.get("tokens_per_sec")),
        "of the measured matmul peak": "–" if share is None else f"{share:.1%}",
        "training time": page.duration(summary.get("train_seconds")),
    }
    return page.tiles(values)


def _writes_tiles(summary: Mapping[str, Any]) -> dict[str, str]:
    """What the memories did to the held-out loss; nothing of a model without."""
    loss, plain, share = (summary.get(key) for key in ("eval_loss", "eval_loss_no_writes", "periods_written"))
    tiles = {}
    if loss is not None and plain is not None:
        tiles[f"nats by memory writes: {page.number(plain)} without"] = f"{loss - plain:+.4f}"
    if share is not None:
        threshold = summary.get("config", {}).get("memory", {}).get("surprise_threshold")
        tiles[f"of periods written, surprise_threshold={threshold}"] = f"{share:.1%}"
    return tiles


def _summary_tables(summary: Mapping[str, Any]) -> str:
    config = flatten(summary.get("config", {}))
    setup = {key: config[key] for key in _ESSENTIALS if key in config}
    ran = {
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
    cards = "".join(f'<div class="card">{page.table(values)}</div>' for values in (setup, ran))
    return f'<div class="two">{cards}</div>'


def _loss_section(rows: Sequence[Mapping[str, Any]]) -> str:
    return (
        "<h2>Loss</h2>"
        + page.figure(as_data_uri(loss_figure(rows)), "Training and held-out loss over steps")
        + '<p class="note">Training loss is of the logged batch (faint) and smoothed (bold). Held-out loss '
        "is over the same documents each time, which are never trained on. The unigram entropy is that of "
        "the held-out targets themselves: a model that knew only the token frequencies of exactly this text "
        f"would score it. The dotted line is {GOAL} of it. Lower shows use of context; it is no measure of "
        "the quality of the text.</p>"
        + page.figure(as_data_uri(health_figure(rows)), "Learning rate, norms and throughput")
    )


def _last_writes_table(rows: Sequence[Mapping[str, Any]]) -> str:
    last: Mapping[str, Any] = next((row["writes"] for row in reversed(rows) if row.get("writes")), {})
    names = list(dict.fromkeys(name for level in last.values() for name in level))
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = []
    for level, statistics in last.items():
        cells = []
        for name in names:
            values = [v for v in statistics.get(name) or [] if v is not None]
            cells.append(f"<td>{page.number(sum(values) / len(values) if values else None, 3)}</td>")
        body.append(f"<tr><td>{escape(level)}</td>{''.join(cells)}</tr>")
    return f'<table class="num"><tr><th>level</th>{head}</tr>{"".join(body)}</table>'


def _writes_section(rows: Sequence[Mapping[str, Any]]) -> str:
    figure = writes_figure(rows)
    if figure is None:
        return (
            '<h2>Memory updates</h2><p class="note">This variant has no memories, so nothing was written.</p>'
        )
    effect = effect_figure(rows)
    return (
        "<h2>Memory updates</h2>"
        + ("" if effect is None else page.figure(as_data_uri(effect), "Effect of writes on held-out text"))
        + page.figure(as_data_uri(figure), f"Write statistics of {', '.join(write_levels(rows))}")
        + '<p class="note">What each level wrote in the logged steps, one line a layer. A level whose '
        "updates stay at zero has learned nothing at test time; clip hits say that the bounds, not the "
        "optimizer, set the size of a write.</p>"
        f"<details><summary>All statistics at the last logged step (mean over layers)</summary>"
        f'<div class="card">{_last_writes_table(rows)}</div></details>'
    )


def _samples_section(samples: Sequence[Mapping[str, str]]) -> str:
    if not samples:
        return ""
    quotes = (f"<blockquote><i>{escape(s['prompt'])}</i>{escape(s['text'])}</blockquote>" for s in samples)
    return (
        f'<h2>Generated lines</h2><div class="card">{"".join(quotes)}</div><p class="note">Grey: prompts '
        "from the start of held-out rows. Black: the model's continuation at temperature 0.8, the first "
        "draw, not selected.</p>"
    )


def render(summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """The report as one HTML page without outside references.

    Args:
        summary: contents of `summary.json`.
        rows: rows of `metrics.jsonl`, at least one.
    """
    name = str(summary.get("name", "run"))
    config = summary.get("config", {})
    model = config.get("model", {})
    sub = f"{model.get('block_variant', '')} · {summary.get('steps')} steps · {summary.get('device', '')}"
    warning = ""
    if summary.get("interrupted"):
        warning = (
            f'<div class="warn">Interrupted after step {summary.get("steps")}; the same command continues '
            "the run. There is no final evaluation yet.</div>"
        )
    raised = [row for row in rows if row.get("alarm")]
    for kind in (False, True):
        alarms = [f"step {row['step']}: {row['alarm']}" for row in raised if is_idle(row["alarm"]) == kind]
        if alarms:
            first = f"{len(alarms)} rows with an alarm, the first at {alarms[0]}"
            warning += f'<div class="warn">{escape(first)}</div>'
    notes = "".join(f"<li>{escape(str(note))}</li>" for note in summary.get("notes", ()))
    settings = "\n".join(f"{k}: {v}" for k, v in flatten(config).items())
    body = (
        f"{warning}{_tiles(summary)}"
        f"{_loss_section(rows)}{_writes_section(rows)}{_samples_section(summary.get('samples', ()))}"
        f"<h2>Run</h2>{_summary_tables(summary)}"
        + (f"<details><summary>Notes of the run</summary><ul>{notes}</ul></details>" if notes else "")
        + f"<details><summary>Whole configuration</summary><code>{escape(settings)}</code></details>"
    )
    return page.page(name, sub, body)


def write_report(workdir: Path) -> None:
    """Write `report.html` and `loss.png` into a run's folder.

    Raises: DataError if the folder lacks `summary.json` or rows in `metrics.jsonl`.
    """
    rows = read_rows(workdir / METRICS_FILE)
    try:
        summary = json.loads((workdir / SUMMARY_FILE).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise DataError(
            f"{workdir / SUMMARY_FILE} cannot be read ({error}); run the training again"
        ) from error
    if rows:
        save_png(loss_figure(rows), workdir / LOSS_FILE)
    write_atomic(workdir / REPORT_FILE, render(summary, rows))
