"""Log-likelihoods: many short contexts side by side, or one long document by streaming.

Each row is a context of its own that begins with BOS; memories are written on its targets as it is read, as
in any stream. Rows are padded on the right, which reads and writes do not see.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.core.types import Array, PyTree
from hope_jax.evals.reading.subject import Subject, take
from hope_jax.learning.sampling import roomy

_LOGITS = 2**26
"""Logits that one call leaves at most (256 MiB in float32)."""


class Pair(NamedTuple):
    """Token ids, int32 [n] and [m], without BOS; the context may be empty."""

    context: np.ndarray
    continuation: np.ndarray


class Score(NamedTuple):
    """log_prob: of the whole continuation, in nats. tokens: in it. greedy: each was the likeliest."""

    log_prob: float
    tokens: int
    greedy: bool


class Row(NamedTuple):
    """tokens: int32 [n]. targets: bool [n], the token is one, so memories learn from it."""

    tokens: np.ndarray
    targets: np.ndarray


class Read(NamedTuple):
    """For each token but BOS: log_probs float64 [n] in nats, and whether it was the likeliest, bool [n]."""

    log_probs: np.ndarray
    greedy: np.ndarray


def score_pairs(
    subject: Subject, pairs: Sequence[Pair], fast: PyTree | None = None, *, batch_size: int = 16
) -> list[Score]:
    """Log-likelihoods of continuations, in the order given, each in a context of its own.

    Tokens of contexts are targets, those of continuations are not (as `generate --write=prompt`).
    fast: memories to start from: of as many contexts as there are pairs, or of one for all; None: those that
    training left. Under memory.scope=batch it is one state that all start from.
    """
    rows = [
        Row(np.concatenate(pair).astype(np.int32), np.arange(sum(map(len, pair))) < len(pair.context))
        for pair in pairs
    ]
    read = read_rows(subject, rows, fast, batch_size=batch_size)
    scores = []
    for pair, found in zip(pairs, read, strict=True):
        tail = slice(len(pair.context), None)
        scores.append(
            Score(float(found.log_probs[tail].sum()), len(pair.continuation), bool(found.greedy[tail].all()))
        )
    return scores


def token_log_probs(
    subject: Subject, rows: Sequence[np.ndarray], fast: PyTree | None = None, *, batch_size: int = 16
) -> list[np.ndarray]:
    """float64 [n] of each row: log p of each of its tokens, all of which are targets. fast: see
    `score_pairs`."""
    all_targets = [Row(np.asarray(row, np.int32), np.ones(len(row), bool)) for row in rows]
    return [found.log_probs for found in read_rows(subject, all_targets, fast, batch_size=batch_size)]


def read_rows(
    subject: Subject, rows: Sequence[Row], fast: PyTree | None = None, *, batch_size: int = 16
) -> list[Read]:
    """Reads every row with memories `fast` (see `score_pairs`); neighbours in length share a batch."""
    # Batches come in sizes of powers of two, so few are compiled.
    batch_size = 1 << (subject.batch_size(batch_size).bit_length() - 1)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].tokens))
    found: dict[int, Read] = {}
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        own = take(subject, subject.trained.fast if fast is None else fast, _filled(chosen))
        for i, read in zip(chosen, _read_batch(subject, [rows[i] for i in chosen], own), strict=True):
            found[i] = read
    return [found[i] for i in range(len(rows))]


def stream_log_probs(
    subject: Subject, tokens: np.ndarray, fast: PyTree | None = None, *, segment: int = 4096
) -> Iterator[np.ndarray]:
    """Log-likelihoods, float64 [s] at a time, of one long document that is read by streaming.

    tokens: int32 [n], all targets; BOS is put before. segment: tokens of a call; results do not depend on it.
    """
    trained = subject.trained
    row = np.concatenate([[trained.tokenizer.bos_id], tokens]).astype(np.int32)[None]
    own = jax.tree.map(jnp.copy, trained.fast if fast is None else fast)
    state = trained.streamer.begin(trained.params, 1, roomy(trained.streamer, row.shape[1]), own)
    segment = min(segment, _segment(subject, 1))
    for start in range(0, row.shape[1] - 1, segment):
        part = slice(start, min(start + segment, row.shape[1] - 1))
        following = row[:, part.start + 1 : part.stop + 1]
        logits, state = trained.streamer.feed(trained.params, state, row[:, part], in_place=True)
        yield np.asarray(following_log_probs(logits, jnp.asarray(following))[0], np.float64)[0]


def _filled(chosen: list[int]) -> list[int]:
    """The rows of a batch, its first repeated up to a power of two."""
    size = 1 << (len(chosen) - 1).bit_length()
    return chosen + chosen[:1] * (size - len(chosen))


def _segment(subject: Subject, batch_size: int) -> int:
    """Tokens of a call: whole online chunks whose logits are not too many."""
    size, vocab = subject.trained.streamer.rule.chunk_size, subject.trained.streamer.model.spec.vocab_size
    return max(1, min(256, _LOGITS // (batch_size * vocab * size))) * size


def _read_batch(subject: Subject, rows: list[Row], fast: PyTree | None) -> list[Read]:
    trained = subject.trained
    streamer, bos, pad = trained.streamer, trained.tokenizer.bos_id, trained.tokenizer.pad_id
    batch = 1 << (len(rows) - 1).bit_length()
    longest = max(len(row.tokens) for row in rows)
    size = streamer.rule.chunk_size
    width = -(-max(longest, 1) // size) * size
    # The last token is read from, not after: it is no input. Rows that fill the batch are padding.
    tokens, segments = np.full((batch, width + 1), pad, np.int32), np.zeros((batch, width + 1), np.int32)
    mask = np.zeros((batch, width + 1), bool)
    for i, row in enumerate(rows):
        n = len(row.tokens)
        tokens[i, : n + 1] = [bos, *row.tokens]
        segments[i, : n + 1] = 1
        mask[i, 1 : n + 1] = row.targets
    state = streamer.begin(trained.params, batch, roomy(streamer, width), jax.tree.map(jnp.copy, fast))
    step, log_probs, greedy = _segment(subject, batch), [], []
    for start in range(0, width, step):
        part = slice(start, min(start + step, width))
        logits, state = streamer.feed(
            trained.params,
            state,
            tokens[:, part],
            segment_ids=segments[:, part],
            target_mask=mask[:, part],
            in_place=True,
        )
        picked = following_log_probs(logits, jnp.asarray(tokens[:, part.start + 1 : part.stop + 1]))
        log_probs.append(np.asarray(picked[0], np.float64))
        greedy.append(np.asarray(picked[1]))
    log_probs_bt, greedy_bt = np.concatenate(log_probs, 1), np.concatenate(greedy, 1)
    return [
        Read(log_probs_bt[i, : len(row.tokens)], greedy_bt[i, : len(row.tokens)])
        for i, row in enumerate(rows)
    ]


@partial(jax.jit)
def following_log_probs(logits: Array, following: Array) -> tuple[Any, Any]:
    """logits [B, n, V], following int32 [B, n]: log p of each of these, and whether it is the likeliest."""
    own = jnp.take_along_axis(logits, following[..., None], axis=-1)[..., 0]
    return own - jax.nn.logsumexp(logits, axis=-1), logits.argmax(-1) == following
