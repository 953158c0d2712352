"""Perplexity of long texts that are read by streaming: pieces as they are read, with writes and without, and
their second halves, read alone by memories of the first (docs/evals/long_context.md).
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from hope_jax.core.errors import ConfigError
from hope_jax.core.types import PyTree
from hope_jax.data.tokenizer import Tokenizer
from hope_jax.evals.reading.memorize import excerpt, unrelated
from hope_jax.evals.reading.scoring import token_log_probs
from hope_jax.evals.statistics import Estimate, ratio
from hope_jax.evals.suite.run import BASELINE, CONTROL, MEMORIZED, Journal, Run, evaluation, whole_number
from hope_jax.evals.tasks.arms import Records, paired_arms, run_arms, score_items, update_statistics
from hope_jax.evals.tasks.curves import perplexity_figures
from hope_jax.evals.tasks.segments import SUFFIX, held_out_texts, read_documents

NAME = "perplexity"
TOKENS = 4096
LEAST = 32
_BATCH_TOKENS = 2**17
WRITES_ON, WRITES_OFF = "writes_on", "writes_off"
ALL, SECOND_HALF = "all", "second_half"
FIRST = 16
"""Where the first position bucket ends; the others end at the powers of two after it."""
_OF_TOKENS = "Figures per token are of this model's tokenizer; those per byte and word compare between any."
_EMBEDDED = (
    "The texts are held-out documents of the embedded corpus, joined per source: for a model that was "
    "trained on the embedded corpus they are more of the same sources, for any other not; this one's "
    "data.source is"
)
_SPACES = np.frombuffer(b" \t\n\r\f\v", np.uint8)


class Piece(NamedTuple):
    """tokens: int32 [n], without BOS. bytes, words: int64 [n], UTF-8 bytes that a token stands for, and words
    (runs without white space) that begin in it. key: source and number of the piece in its text."""

    key: str
    source: str
    tokens: np.ndarray
    bytes: np.ndarray
    words: np.ndarray

    def part(self, start: int, stop: int) -> "Piece":
        """Some of its tokens."""
        return Piece(self.key, self.source, *(t[start:stop] for t in self[2:]))

    def halves(self) -> tuple["Piece", "Piece"]:
        """The first as long as the second, or a token shorter."""
        middle = len(self.tokens) // 2
        return self.part(0, middle), self.part(middle, len(self.tokens))


Losses = Mapping[str, np.ndarray]
"""nats, tokens, bytes, words of each bucket of position of one text, [buckets]; nats: -log p."""


def _asked(run: Run) -> tuple[dict[str, Any], list[Piece]]:
    """The settings, and the pieces."""
    tokens = whole_number(run.options, "perplexity_tokens", TOKENS, LEAST)
    text = run.options.get("perplexity_text")
    pieces, digest = load_pieces(run.subject.trained.tokenizer, text, tokens)
    return {"tokens": tokens, "text": digest}, pieces


@evaluation(NAME, _asked, perplexity_figures)
def evaluate(run: Run, journal: Journal, settings: dict[str, Any], others: list[Piece]) -> dict[str, Any]:
    """Metrics "group/measure/arm"; groups are `all`, each source, `position_LOW_HIGH`, and with memorization
    `second_half` and `second_half_position_LOW_HIGH`; see `estimates`. Intervals and paired tests are over
    pieces; of one piece there is none."""
    pieces = others[: run.limit or len(others)]
    run = replace(run, batch_size=max(1, min(run.batch_size, _BATCH_TOKENS // settings["tokens"])))
    records = {
        arm: score_items(run, journal, arm, pieces, partial(_scores, run, targets=arm == WRITES_ON))
        for arm in (WRITES_ON, WRITES_OFF)
    }
    metrics = _measured(ALL, records, "position")
    for source in sorted({piece.source for piece in pieces}):
        own = {arm: [r for r in rs if r["source"] == source] for arm, rs in records.items()}
        metrics |= _measured(source, own, None)
    paired = paired_arms(records, ALL, "nats_per_token", WRITES_ON, (WRITES_OFF,))
    halves: Records = {}
    if MEMORIZED in run.arms:
        halves = _second_halves(run, journal, pieces, others)
        metrics |= _measured(SECOND_HALF, halves, f"{SECOND_HALF}_position")
        paired |= paired_arms(halves, SECOND_HALF, "nats_per_token", MEMORIZED, (BASELINE, CONTROL))
    embedded = f"{_EMBEDDED} {run.subject.config.data.source!r}."
    return {
        "batch_size": run.batch_size,
        "metrics": metrics,
        "paired": paired,
        "updates": update_statistics(halves),
        "items": [
            *({"arm": arm, "tasks": [ALL, r["source"]], **r} for arm, rs in records.items() for r in rs),
            *({"arm": arm, "tasks": [SECOND_HALF], **r} for arm, rs in halves.items() for r in rs),
        ],
        "texts": {"pieces": len(pieces), "tokens": sum(len(piece.tokens) for piece in pieces)},
        "notes": [*([] if run.options.get("perplexity_text") else [embedded]), _OF_TOKENS],
    }


def load_pieces(tokenizer: Tokenizer, source: str | None, tokens: int) -> tuple[list[Piece], str]:
    """Pieces of `tokens` tokens, all texts' first ones first, and a digest of the texts. source: a text file
    or folder, whose documents are texts; None: the embedded corpus's held-out documents, joined per source. A
    text's last piece is left out if it has fewer than half of the tokens, unless it is its only one and has
    two. Raises: as `read_documents`; ConfigError if no text can be scored."""
    if source is None:
        texts = list(held_out_texts().items())
    else:
        # "/" separates parts of keys.
        documents = read_documents("perplexity_text", source)
        texts = [(f"{d.source.removesuffix(SUFFIX).replace('/', '.')}.{d.index}", d.text) for d in documents]
    digest = hashlib.sha256("\0".join(text for _, text in texts).encode()).hexdigest()
    names = [name for name, _ in texts]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"perplexity_text={source}: two texts are named {twice!r}; rename one of the files")
    pieces = [piece for name, text in texts for piece in _cut(tokenizer, name, text, tokens)]
    if not pieces:
        raise ConfigError(f"perplexity_text={source}: no text of two tokens in it")
    return sorted(pieces, key=lambda piece: int(piece.key.rsplit("/", 1)[1])), digest


def _cut(tokenizer: Tokenizer, name: str, text: str, size: int) -> Sequence[Piece]:
    """A space that the tokenizer puts before a text is none of the text's bytes, and what it cannot tell
    counts where it ends."""
    tokens, raw = tokenizer.encode(text), np.frombuffer(text.encode(), np.uint8)
    ends = np.cumsum(tokenizer.byte_counts[tokens])
    if len(ends):
        ends = np.clip(ends - max(int(ends[-1]) - len(raw), 0), 0, None)
        ends[-1] = len(raw)
    space = np.isin(raw, _SPACES)
    begins = np.flatnonzero(~space & np.concatenate([[True], space[:-1]]))
    words = np.bincount(np.searchsorted(ends, begins, side="right"), minlength=len(tokens))
    whole = Piece("", name, tokens, np.diff(ends, prepend=0), words)
    pieces = [whole.part(start, start + size) for start in range(0, len(tokens), size)]
    if len(pieces) > 1 and len(pieces[-1].tokens) < size / 2:
        pieces.pop()
    return [p._replace(key=f"{name}/{i}") for i, p in enumerate(pieces) if len(p.tokens) > 1]


def _scores(run: Run, pieces: Sequence[Piece], fast: PyTree | None, targets: bool) -> list[dict[str, Any]]:
    rows = [piece.tokens for piece in pieces]
    found = token_log_probs(run.subject, rows, fast, batch_size=run.batch_size, targets=targets)
    return [_record(piece, log_probs) for piece, log_probs in zip(pieces, found, strict=True)]


def _second_halves(
    run: Run, journal: Journal, pieces: Sequence[Piece], all_pieces: Sequence[Piece]
) -> Records:
    """The records of second halves in each arm; the control arm reads other sources of `all_pieces`. Under
    `use_correct_answer` the text that is memorized is the second half, whose loss is measured: a leak."""

    def text(piece: Piece) -> np.ndarray:
        first, second = piece.halves()
        return (second if run.memorize.use_correct_answer else first).tokens

    def score(batch: Sequence[Piece], fast: PyTree | None) -> list[dict[str, Any]]:
        return _scores(run, [piece.halves()[1] for piece in batch], fast, targets=True)

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
        "buckets": {name: column.tolist() for name, column in losses.items()},
    }


def _measured(group: str, records: Records, positions: str | None) -> dict[str, Any]:
    """Metrics of a group, and by position under "positions_LOW_HIGH" if that is given."""
    metrics: dict[str, Any] = {}
    for arm, items in records.items():
        losses = [{name: np.array(v) for name, v in item["buckets"].items()} for item in items]
        metrics |= {f"{group}/{name}/{arm}": estimate for name, estimate in estimates(losses).items()}
        for (low, high), estimate in over_positions(losses).items() if positions else ():
            metrics[f"{positions}_{low}_{high}/nats_per_token/{arm}"] = estimate
    return metrics


def losses_of(nats: np.ndarray, byte_counts: np.ndarray, words: np.ndarray) -> Losses:
    """The losses of one text; arguments: of each token, [n] with n > 0."""
    starts = [low for low, _ in buckets(len(nats))]
    columns = {"nats": nats, "tokens": np.ones(len(nats)), "bytes": byte_counts, "words": words}
    return {name: np.add.reduceat(np.asarray(c, np.float64), starts) for name, c in columns.items()}


def buckets(n: int) -> list[tuple[int, int]]:
    """Where the buckets [low, high) of a text of n tokens lie: [0, 16), [16, 32), [32, 64) and so on."""
    edges = [0, *(FIRST << i for i in range(n.bit_length()))]
    return [(low, high) for low, high in pairwise(edges) if low < n]


def estimates(texts: Sequence[Losses]) -> dict[str, Estimate]:
    """perplexity (e to the nats per token), nats_per_token, nats_per_byte, and nats_per_word if there are
    words, over some texts."""
    sums = {name: np.array([text[name].sum() for text in texts]) for name in texts[0]}
    nats = sums.pop("nats")
    found = {f"nats_per_{name[:-1]}": ratio(nats, count) for name, count in sums.items() if count.sum()}
    return {**found, "perplexity": found["nats_per_token"].mapped(_exponential)}


def _exponential(nats: float) -> float:
    """e to the nats; infinite where a model has diverged."""
    return math.exp(nats) if nats < 700 or math.isnan(nats) else math.inf


def over_positions(texts: Sequence[Losses]) -> dict[tuple[int, int], Estimate]:
    """Nats per token by bucket of the tokens before, each over the texts that reach it."""
    found = {}
    for i, bucket in enumerate(buckets(max(int(text["tokens"].sum()) for text in texts))):
        there = [text for text in texts if len(text["tokens"]) > i]
        found[bucket] = ratio(*([text[name][i] for text in there] for name in ("nats", "tokens")))
    return found
