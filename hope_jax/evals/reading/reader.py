"""Rows read in order with memories that go on from row to row, and rows read with memories as they stand.

A row is a document: BOS is put before it, attention sees nothing before that, so that only memories (or
parameters) can carry anything from one row to the next.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.core.types import NO_TARGET, Array, PyTree
from hope_jax.evals.reading.memorize import Rule, Updates, counts_of, merge, whole_tokens, writing_streamer
from hope_jax.evals.reading.scoring import feed_to, padded, segment_tokens, side_by_side, up
from hope_jax.evals.reading.subject import Subject
from hope_jax.learning.chunk import read_loss
from hope_jax.models.lm import Carry, HopeModel

_RULE = Rule()
_STREAM_TOKENS = 512
"""Of a stream at least: the attention cache is as long, and most of its keys are of other documents."""


class Prefix(NamedTuple):
    """Tokens that many rows begin with, read once: whole online chunks. carry, fast: after them, of one
    context. rest: tokens int32 [r] that are no whole chunk, and are read with each row: all of them, with no
    carry, where memories write while they read, on a grid of their own."""

    carry: Carry | None
    fast: PyTree
    rest: np.ndarray


class Reading(NamedTuple):
    """log_probs: of each token of each row, float64 [n]. fast: memories after the last row. updates: of the
    writes, values [1]."""

    log_probs: list[np.ndarray]
    fast: PyTree
    updates: Updates


class Reader:
    """Reads rows for one subject; its parameters are arguments, as fine-tuning changes them. rule: what is
    written, where, and how often a stream is read. Documents do not reset memories here, and partial periods
    are written when a stream ends. A stream is as long as a row of training and the slowest period at least;
    then the next begins with its memories. Raises: as `writing_streamer`."""

    def __init__(self, subject: Subject, rule: Rule = _RULE) -> None:
        self.rule, self.streamer = rule, writing_streamer(subject, rule)
        spec = self.streamer.model.spec
        self.model = HopeModel(spec)
        self.tokenizer = subject.trained.tokenizer
        self.initial, self.trained = subject.trained.fast, subject.trained.params
        # Rows that are read with one and the same memory share its matrices, where reading does not write.
        written = bool(self.model.stream_memories())
        shared_spec = replace(spec, memory=replace(spec.memory, scope="batch"))
        self.frozen = self.model if written else HopeModel(shared_spec)
        self.alone = written and spec.memory.scope == "batch"
        # Periods and online chunks divide each other, so this is a multiple of all.
        self.multiple = whole_tokens(self.streamer)
        levels = [
            *spec.cms.levels.values(),
            *([spec.titan.level] if "titan" in self.model.memories() else []),
        ]
        slowest = max([self.multiple, *(level.update_period for level in levels)])
        self.stream_tokens = up(max(_STREAM_TOKENS, subject.config.data.seq_len), slowest)

    def start(self, params: PyTree) -> PyTree:
        """The memories of one context before it has read anything, at parameters that may have moved since
        training."""
        return start_of(self.model, params, self.trained, self.initial)

    def read_on(
        self, params: PyTree, fast: PyTree, rows: Sequence[np.ndarray], *, write: bool = True
    ) -> Reading:
        """Reads rows, int32 [n] without BOS, one after the other, writing as it goes. write: tokens are
        targets; else memories that teach signals drive stay as they are (those that write while they read do
        not). Log-likelihoods are those of a stream's first reading."""
        found: list[np.ndarray] = []
        total: Updates = {}
        step = segment_tokens(self.streamer, 1, 16)
        for tokens, segments in packed(rows, self.tokenizer.bos_id, self.stream_tokens):
            # One token more than whole chunks: every call then reads whole chunks, and shapes are few.
            width = up(len(tokens), self.multiple) + 1
            row, _ = padded([tokens], width + 1, self.tokenizer.pad_id)
            documents, _ = padded([segments], width + 1, 0)
            columns = row, documents, np.full(row.shape, write)
            for reading in range(self.rule.steps):
                own = jax.tree.map(jnp.copy, fast)
                state = self.streamer.begin(params, 1, self.stream_tokens + self.multiple, own)
                stops = [*range(1 + step, width, step), width]
                log_probs, _, state = feed_to(self.streamer, params, state, columns, stops)
                found += of_documents(log_probs[0], segments) if reading == 0 else []
                result = self.streamer.finish(params, state)
                merge(total, counts_of(result.stats, self.streamer.model, [len(tokens)], self.rule))
                fast = result.fast
        return Reading(found, fast, total)

    def prefix(self, params: PyTree, fast: PyTree, tokens: np.ndarray, room: int) -> Prefix:
        """Tokens, int32 [n], after BOS, read without teach-driven writes for the rows that begin with them;
        room: tokens of the longest such row."""
        row = np.concatenate([[self.tokenizer.bos_id], tokens]).astype(np.int32)
        size = self.streamer.rule.chunk_size
        if self.model.stream_memories():
            return Prefix(None, fast, row)
        whole = len(row) // size * size
        carry: Carry | None = self.model.init_carry(1, whole + up(size + room, 16))
        for at in range(0, whole, size):
            part = jnp.asarray(row[None, at : at + size])
            carry, fast = _advance(self.model, params, fast, carry, part)
        return Prefix(carry, fast, row[whole:])

    def losses(
        self,
        params: PyTree,
        fast: PyTree,
        rows: Sequence[np.ndarray],
        tails: Sequence[int] | None = None,
        *,
        prefix: Prefix | None = None,
        batch_size: int = 16,
    ) -> list[np.ndarray]:
        """Cross-entropies in nats, float64, of the last `tails[i]` tokens of row i (None: of all), in order.
        fast: of one context, from which every row starts, and which no row's tokens write (but those of
        memories that write while they read, for their row alone). prefix: rows come after it, not after BOS.
        """
        start = Prefix(None, fast, np.array([self.tokenizer.bos_id])) if prefix is None else prefix
        ends, memory = [len(row) for row in rows] if tails is None else tails, start.fast
        if self.frozen is not self.model and self.model.spec.memory.scope == "example":
            memory = jax.tree.map(lambda t: t[0], memory)
        batch_size = 1 if self.alone else batch_size

        def read(chosen: list[int]) -> list[np.ndarray]:
            own, last = [np.concatenate([start.rest, rows[i]]) for i in chosen], [ends[i] for i in chosen]
            tokens, segments = padded(own, up(max(map(len, own)), 16), self.tokenizer.pad_id, batch_size)
            places = [np.arange(len(row) - end, len(row)) for row, end in zip(own, last, strict=True)]
            before, _ = padded([at - 1 for at in places], up(max(last), 8), 0, batch_size)
            targets = [row[at] for row, at in zip(own, places, strict=True)]
            wanted, _ = padded(targets, up(max(last), 8), NO_TARGET, batch_size)
            got = _losses(self.frozen, params, memory, start.carry, tokens, segments, before, wanted)
            return [row[:end] for row, end in zip(np.asarray(got, np.float64), last, strict=False)]

        return side_by_side([(len(row), end) for row, end in zip(rows, ends, strict=True)], batch_size, read)


def start_of(model: HopeModel, params: PyTree, trained: PyTree, initial: PyTree | None) -> PyTree:
    """The memories of one context that has read nothing, at `params`; differentiable. initial: those that
    training left on top of the parameters `trained`; None: none."""
    return model.init_fast_state(params, 1) if initial is None else model.move(trained, params, initial)


def packed(rows: Sequence[np.ndarray], bos: int, length: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows, each after BOS, in order, as many together as `length` tokens hold: tokens and documents (from
    1), int32 [m]. A row that is longer than that stands alone."""
    groups: list[list[np.ndarray]] = []
    for row in rows:
        document = np.concatenate([[bos], row]).astype(np.int32)
        if not groups or sum(map(len, groups[-1])) + len(document) > length:
            groups.append([])
        groups[-1].append(document)
    for held in groups:
        yield (
            np.concatenate(held),
            np.repeat(np.arange(1, 1 + len(held)), list(map(len, held))).astype(np.int32),
        )


def of_documents(values: np.ndarray, segments: np.ndarray) -> list[np.ndarray]:
    """Of values [m - 1], each of the token after one of a stream of documents from 1, int [m]: those of each
    document's tokens but its first."""
    places = [np.flatnonzero(segments == document) for document in range(1, int(segments.max()) + 1)]
    return [values[at[:-1]] for at in places]


@partial(jax.jit, static_argnums=0)
def _advance(
    model: HopeModel, params: PyTree, fast: PyTree, carry: Carry, tokens: Array
) -> tuple[Carry | None, PyTree]:
    out = model.read(params, fast, carry, tokens, jnp.ones_like(tokens))
    return out.carry, out.fast


@partial(jax.jit, static_argnums=0)
def _losses(
    model: HopeModel,
    params: PyTree,
    fast: PyTree,
    carry: Carry | None,
    tokens: Array,
    segments: Array,
    at: Array,
    targets: Array,
) -> Array:
    """Cross-entropy [B, m] of targets [B, m] after the tokens at positions `at` [B, m] of tokens [B, n].
    carry: of one context, as fast, whose leaves are [1, ...], or without an axis of contexts under scope
    "batch"."""
    size = len(tokens)

    def spread(t: Any) -> Any:
        return jnp.broadcast_to(t, (size, *t.shape[1:]))

    if model.spec.memory.scope == "example":
        fast = jax.tree.map(spread, fast)
    if carry is not None:
        seen = jnp.broadcast_to(carry.segments, (size, carry.segments.shape[1]))
        carry = Carry(carry.position, seen, jax.tree.map(spread, carry.cache))
    out = model.read(params, fast, carry, tokens, segments)
    hidden = jnp.take_along_axis(out.hidden, at[..., None], axis=1)
    return read_loss(params, out._replace(hidden=hidden), targets).loss_bt
