"""Perplexity of long texts that are read by streaming (docs/evals/long_context.md).

Each text is cut into pieces; each piece is a context of its own, read after BOS from its beginning:
- with writes, as in any stream, and without (no token is a target, so no teach-driven memory is written), by
  position: what loss falls with the tokens before is the use of context;
- with memorization: the second half of a piece is read alone, as a context of its own, by memories that have
  read the first half (`memorized`), nothing (`baseline`), or as many tokens of an unrelated text (`control`).
  Attention sees nothing of the first half, so only memories can tell what it held.

Options: perplexity_text (a text file or folder; without it the held-out documents of the embedded corpus,
joined per source), perplexity_tokens (of a piece at most).
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hope_jax.core.types import PyTree
from hope_jax.evals import statistics
from hope_jax.evals.arms.memorized import Records, run_arms, update_statistics
from hope_jax.evals.reading.memorize import excerpt, unrelated
from hope_jax.evals.reading.scoring import Row, read_rows
from hope_jax.evals.suite import options
from hope_jax.evals.suite.journal import Journal
from hope_jax.evals.suite.run import BASELINE, CONTROL, MEMORIZED, Run, outcome, progress
from hope_jax.evals.tasks.long_context_figures import loss_over_position
from hope_jax.evals.tasks.perplexity_losses import Losses, estimates, losses_of, over_positions
from hope_jax.evals.tasks.perplexity_pieces import Piece, load_pieces

NAME = "perplexity"
TOKENS = 4096
LEAST = 32
_BATCH_TOKENS = 2**17
WRITES_ON, WRITES_OFF = "writes_on", "writes_off"
ALL, SECOND_HALF = "all", "second_half"


def evaluate(run: Run) -> dict[str, Any]:
    """The outcome: metrics "group/measure/arm"; groups are `all`, each source, `position_LOW_HIGH`, and with
    memorization `second_half` and `second_half_position_LOW_HIGH`; see `perplexity_losses.estimates`.

    Intervals and paired tests are over pieces; of one piece there is none.

    Raises:
      ConfigError: options, or no text.
      DataError: a text cannot be read.
    """
    started = time.monotonic()
    tokens, pieces, digest = _asked(run)
    others, pieces = pieces, pieces[: run.limit or len(pieces)]
    settings = {"tokens": tokens, "text": digest}
    journal = run.journal(NAME, settings, started)
    run = dataclasses.replace(run, batch_size=max(1, min(run.batch_size, _BATCH_TOKENS // tokens)))
    records = {arm: _read(run, journal, pieces, arm) for arm in (WRITES_ON, WRITES_OFF)}
    metrics = _measured(ALL, records, "position")
    for source in sorted({piece.source for piece in pieces}):
        own = [i for i, piece in enumerate(pieces) if piece.source == source]
        metrics |= _measured(source, {arm: [of[i] for i in own] for arm, of in records.items()}, None)
    paired = _paired(ALL, records, WRITES_ON, (WRITES_OFF,))
    halves: Records = {}
    if MEMORIZED in run.arms:
        halves = _second_halves(run, journal, pieces, others)
        metrics |= _measured(SECOND_HALF, halves, f"{SECOND_HALF}_position")
        paired |= _paired(SECOND_HALF, halves, MEMORIZED, (BASELINE, CONTROL))
    journal.close()
    return outcome(
        run, NAME, settings=settings, metrics=metrics, paired=paired, updates=update_statistics(halves),
        items=[
            *({"arm": arm, "tasks": [ALL, r["source"]], **r} for arm, rs in records.items() for r in rs),
            *({"arm": arm, "tasks": [SECOND_HALF], **r} for arm, rs in halves.items() for r in rs),
        ],
        texts={"pieces": len(pieces), "tokens": sum(len(piece.tokens) for piece in pieces)},
        notes=_notes(run), seconds=journal.seconds(),
    )  # fmt: skip


def _notes(run: Run) -> list[str]:
    notes = ["Figures per token are of this model's tokenizer; those per byte and word compare between any."]
    if run.options.get("perplexity_text"):
        return notes
    return [
        "The texts are held-out documents of the embedded corpus, joined per source: for a model that was "
        "trained on the embedded corpus they are more of the same sources, for any other not; this one's "
        f"data.source is {run.subject.config.data.source!r}.",
        *notes,
    ]


def check(run: Run) -> None:
    """Raises: ConfigError for options that cannot be, DataError for texts."""
    _asked(run)


def _asked(run: Run) -> tuple[int, list[Piece], str]:
    """Tokens of a piece at most, the pieces, and a digest of their texts."""
    tokens = options.whole_number(run.options, "perplexity_tokens", TOKENS, LEAST)
    return tokens, *load_pieces(run.subject.trained.tokenizer, run.options.get("perplexity_text"), tokens)


def _read(run: Run, journal: Journal, pieces: Sequence[Piece], arm: str) -> list[dict[str, Any]]:
    """The records of whole pieces, read with or without targets."""
    missing = [piece for piece in pieces if journal.get(f"{arm}/{piece.key}") is None]
    size = run.subject.batch_size(run.batch_size)
    for start in range(0, len(missing), size):
        batch = missing[start : start + size]
        rows = [Row(p.tokens, np.full(len(p.tokens), arm == WRITES_ON)) for p in batch]
        for piece, read in zip(batch, read_rows(run.subject, rows, batch_size=size), strict=True):
            journal.put(f"{arm}/{piece.key}", _record(piece, read.log_probs))
        progress(NAME).info(
            "%s: %d of %d pieces", arm, start + len(batch) + len(pieces) - len(missing), len(pieces)
        )
    return [journal.get(f"{arm}/{piece.key}") or {} for piece in pieces]


def _second_halves(
    run: Run, journal: Journal, pieces: Sequence[Piece], all_pieces: Sequence[Piece]
) -> Records:
    """The records of second halves in each arm; the control arm reads other sources of `all_pieces`. Under
    `use_correct_answer` the text that is memorized is the second half, whose loss is measured: a leak."""

    def text(piece: Piece) -> np.ndarray:
        first, second = piece.halves()
        return (second if run.memorize.use_correct_answer else first).tokens

    def score(batch: Sequence[Piece], fast: PyTree | None) -> list[dict[str, Any]]:
        halves = [piece.halves()[1] for piece in batch]
        rows = [Row(half.tokens, np.ones(len(half.tokens), bool)) for half in halves]
        reads = read_rows(run.subject, rows, fast, batch_size=run.batch_size)
        return [_record(half, read.log_probs) for half, read in zip(halves, reads, strict=True)]

    def control(piece: Piece, length: int, seed: int) -> np.ndarray:
        # First halves: carried memories go on to other pieces, whose second halves are scored.
        others = [other.halves()[0].tokens for other in all_pieces if other.source != piece.source]
        if not others:
            return unrelated(run.subject, length, seed)
        return excerpt(np.concatenate(others), length, seed)

    return run_arms(run, journal, pieces, text, score, control)


def _record(piece: Piece, log_probs: np.ndarray) -> dict[str, Any]:
    losses = losses_of(-log_probs, piece.bytes, piece.words)
    return {
        "key": piece.key,
        "source": piece.source,
        "nats_per_token": float(-log_probs.mean()),
        "buckets": {name: column.tolist() for name, column in losses._asdict().items()},
    }


def _measured(group: str, records: Records, positions: str | None) -> dict[str, Any]:
    """Metrics of a group, and by position under "positions_LOW_HIGH" if that is given."""
    metrics: dict[str, Any] = {}
    for arm, items in records.items():
        losses = [Losses(**{k: np.array(v) for k, v in item["buckets"].items()}) for item in items]
        for name, estimate in estimates(losses).items():
            metrics[f"{group}/{name}/{arm}"] = statistics.as_json(estimate)
        for (low, high), estimate in over_positions(losses).items() if positions else ():
            metrics[f"{positions}_{low}_{high}/nats_per_token/{arm}"] = statistics.as_json(estimate)
    return metrics


def _paired(group: str, records: Records, arm: str, others: Sequence[str]) -> dict[str, Any]:
    """Differences of pieces' nats per token."""
    of = {name: [item["nats_per_token"] for item in items] for name, items in records.items()}
    return {
        f"{group}/nats_per_token/{arm}-{other}": statistics.paired_as_json(
            statistics.paired(of[arm], of[other])
        )
        for other in others
        if other in of
    }


def figures(found: Mapping[str, Any]) -> dict[str, Figure]:
    """Loss over the position in a text, of an outcome."""
    groups: dict[str, dict[str, list[Any]]] = {}
    for key, metric in found["metrics"].items():
        group, _, arm = key.split("/")
        title, _, bucket = group.partition("position_")
        if bucket:
            panel = "second halves" if title else "whole pieces"
            point = (int(bucket.split("_")[0]), metric)
            groups.setdefault(panel, {}).setdefault(arm, []).append(point)
    return {"perplexity_over_position": loss_over_position(groups)}
