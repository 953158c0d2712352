"""`report.html` and `loss.png` of a run, from its `metrics.jsonl` and `summary.json` alone."""

import datetime
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from hope_jax.errors import DataError
from hope_jax.training.figures import (
    GOAL,
    as_data_uri,
    health_figure,
    loss_figure,
    save_png,
    write_levels,
    writes_figure,
)
from hope_jax.training.files import (
    LOSS_FILE,
    METRICS_FILE,
    REPORT_FILE,
    SUMMARY_FILE,
    flatten,
    read_rows,
    write_atomic,
)

_CSS = """
body { margin: 0; background: #f4f6f7; color: #22303c;
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 980px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 26px; margin: 0; letter-spacing: -.01em; }
h2 { font-size: 17px; margin: 36px 0 10px; }
.sub { color: #66737e; margin: 2px 0 22px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; }
.tile, .card { background: #fff; border: 1px solid #e3e8eb; border-radius: 8px; }
.tile { padding: 12px 14px; }
.tile b { display: block; font-size: 22px; font-weight: 600; font-variant-numeric: tabular-nums; }
.tile span { color: #66737e; font-size: 12.5px; }
.card { padding: 16px 18px; overflow-x: auto; }
.card img { width: 100%; display: block; }
.note { color: #66737e; font-size: 13px; margin: 8px 2px 0; max-width: 75ch; }
.note + .card { margin-top: 14px; }
.warn { background: #fdf3e7; border: 1px solid #f0d9b8; border-radius: 8px;
  padding: 10px 14px; margin: 14px 0; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 5px 12px 5px 0; border-bottom: 1px solid #eef1f3; vertical-align: top; }
th { font-weight: 500; color: #66737e; }
.num td, .num th { text-align: right; } .num td:first-child, .num th:first-child { text-align: left; }
.two { display: grid; grid-template-columns: 1fr 1fr; gap: 12px; }
@media (max-width: 720px) { .two { grid-template-columns: 1fr; } }
blockquote { margin: 0 0 14px; white-space: pre-wrap; overflow-wrap: anywhere; }
blockquote:last-child { margin: 0; }
blockquote i { color: #8a959e; font-style: normal; }
details { margin-top: 12px; } summary { cursor: pointer; color: #66737e; }
code { font: 12.5px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; white-space: pre-wrap; }
"""

_ESSENTIALS = (
    "model.block_variant", "model.style", "model.dim", "model.num_layers", "model.heads", "model.vocab_size",
    "data.source", "data.seq_len", "data.batch_size", "train.algorithm_mode", "train.online_chunk_size",
    "train.steps", "train.seed", "train.compute_dtype", "optim.name", "optim.lr", "memory.scope",
    "memory.lifetime", "model.teach_scale", "model.teach_clip", "model.surprise_threshold",
)  # fmt: skip


def _number(value: Any, digits: int = 4) -> str:
    """A number for reading; a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def _duration(seconds: float | None) -> str:
    return "–" if seconds is None else str(datetime.timedelta(seconds=round(seconds)))


def _tiles(summary: Mapping[str, Any]) -> str:
    loss, entropy = summary.get("eval_loss"), summary.get("unigram_entropy")
    ratio = loss / entropy if loss is not None and entropy else None
    share = summary.get("share_of_peak")
    tiles = {
        "held-out loss, nats per token": _number(loss),
        f"of unigram entropy {_number(entropy)}": "–" if ratio is None else f"{ratio:.3f}",
        "held-out perplexity": _number(summary.get("perplexity")),
        "tokens per second": _number(summary.get("tokens_per_sec")),
        "of the measured matmul peak": "–" if share is None else f"{share:.1%}",
        "training time": _duration(summary.get("train_seconds")),
    }
    cells = (f'<div class="tile"><b>{escape(v)}</b><span>{escape(k)}</span></div>' for k, v in tiles.items())
    return f'<div class="tiles">{"".join(cells)}</div>'


def _table(values: Mapping[str, Any]) -> str:
    rows = (f"<tr><th>{escape(k)}</th><td>{escape(_number(v))}</td></tr>" for k, v in values.items())
    return f"<table>{''.join(rows)}</table>"


def _summary_tables(summary: Mapping[str, Any]) -> str:
    config = flatten(summary.get("config", {}))
    setup = {key: config[key] for key in _ESSENTIALS if key in config}
    ran = {
        "steps": summary.get("steps"),
        "tokens": summary.get("tokens"),
        "parameters": summary.get("parameters"),
        "last training loss": summary.get("loss"),
        "held-out loss without writes": summary.get("eval_loss_no_writes"),
        "training time": _duration(summary.get("train_seconds")),
        "first step, compilation included": _duration(summary.get("compile_seconds")),
        "device": summary.get("device"),
        **summary.get("versions", {}),
    }
    return (
        f'<div class="two"><div class="card">{_table(setup)}</div><div class="card">{_table(ran)}</div></div>'
    )


def _figure(uri: str, alt: str) -> str:
    return f'<div class="card"><img alt="{escape(alt)}" src="{uri}"></div>'


def _loss_section(rows: Sequence[Mapping[str, Any]]) -> str:
    return (
        "<h2>Loss</h2>"
        + _figure(as_data_uri(loss_figure(rows)), "Training and held-out loss over steps")
        + '<p class="note">Training loss is of the logged batch (faint) and smoothed (bold). Held-out loss '
        "is over the same documents each time, which are never trained on. The unigram entropy is that of "
        "the held-out targets themselves: a model that knew only the token frequencies of exactly this text "
        f"would score it. The dotted line is {GOAL} of it. Lower shows use of context; it is no measure of "
        "the quality of the text.</p>"
        + _figure(as_data_uri(health_figure(rows)), "Learning rate, norms and throughput")
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
            cells.append(f"<td>{_number(sum(values) / len(values) if values else None, 3)}</td>")
        body.append(f"<tr><td>{escape(level)}</td>{''.join(cells)}</tr>")
    return f'<table class="num"><tr><th>level</th>{head}</tr>{"".join(body)}</table>'


def _writes_section(rows: Sequence[Mapping[str, Any]]) -> str:
    figure = writes_figure(rows)
    if figure is None:
        return (
            '<h2>Memory updates</h2><p class="note">This variant has no memories, so nothing was written.</p>'
        )
    return (
        "<h2>Memory updates</h2>"
        + _figure(as_data_uri(figure), f"Write statistics of {', '.join(write_levels(rows))}")
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
    alarms = [f"step {row['step']}: {row['alarm']}" for row in rows if row.get("alarm")]
    if alarms:
        first = f"{len(alarms)} rows with an alarm, the first at {alarms[0]}"
        warning += f'<div class="warn">{escape(first)}</div>'
    notes = "".join(f"<li>{escape(str(note))}</li>" for note in summary.get("notes", ()))
    settings = "\n".join(f"{k}: {v}" for k, v in flatten(config).items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(name)}</title><style>{_CSS}</style></head><body><main>"
        f'<h1>{escape(name)}</h1><p class="sub">{escape(sub)}</p>{warning}{_tiles(summary)}'
        f"{_loss_section(rows)}{_writes_section(rows)}{_samples_section(summary.get('samples', ()))}"
        f"<h2>Run</h2>{_summary_tables(summary)}"
        + (f"<details><summary>Notes of the run</summary><ul>{notes}</ul></details>" if notes else "")
        + f"<details><summary>Whole configuration</summary><code>{escape(settings)}</code></details>"
        "</main></body></html>\n"
    )


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
