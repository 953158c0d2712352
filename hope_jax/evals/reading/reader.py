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
from hope_jax.evals.reading.scoring import MOST_LOGITS, following_log_probs
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
        self.stream_tokens = _up(max(_STREAM_TOKENS, subject.config.data.seq_len), slowest)

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
        for tokens, segments in packed(rows, self.tokenizer.bos_id, self.stream_tokens):
            log_probs, fast = self._stream(params, fast, tokens, segments, write, total)
            for _ in range(self.rule.steps - 1):
                _, fast = self._stream(params, fast, tokens, segments, write, total)
            for document in range(1, int(segments.max()) + 1):
                (at,) = np.nonzero(segments == document)
                found.append(log_probs[at[1:] - 1])
        return Reading(found, fast, total)

    def _stream(
        self,
        params: PyTree,
        fast: PyTree,
        tokens: np.ndarray,
        segments: np.ndarray,
        write: bool,
        total: Updates,
    ) -> tuple[np.ndarray, PyTree]:
        """log p of the tokens after the first, float64 [m - 1], and the memories after. Adds to `total`."""
        size, vocab = self.streamer.rule.chunk_size, self.model.spec.vocab_size
        step = size * max(1, min(16, MOST_LOGITS // (size * vocab)))
        # One token more than whole chunks: every call then reads whole chunks, and shapes are few.
        width = _up(len(tokens), self.multiple) + 1
        row, documents = np.full((1, width), self.tokenizer.pad_id, np.int32), np.zeros((1, width), np.int32)
        row[0, : len(tokens)], documents[0, : len(tokens)] = tokens, segments
        capacity = self.stream_tokens + self.multiple
        state = self.streamer.begin(params, 1, capacity, jax.tree.map(jnp.copy, fast))
        found, start = [], 0
        while start < width:
            stop = min(start + step + (start == 0), width)
            targets = np.full((1, stop - start), write)
            logits, state = self.streamer.feed(
                params, state, row[:, start:stop], documents[:, start:stop], targets, in_place=True
            )
            following = np.zeros((1, stop - start), np.int32)
            following[:, : min(stop + 1, width) - start - 1] = row[:, start + 1 : stop + 1]
            found.append(following_log_probs(logits, following)[0][0])
            start = stop
        result = self.streamer.finish(params, state)
        merge(total, counts_of(result.stats, self.streamer.model, [len(tokens)], self.rule))
        return np.concatenate(found)[: len(tokens) - 1], result.fast

    def prefix(self, params: PyTree, fast: PyTree, tokens: np.ndarray, room: int) -> Prefix:
        """Tokens, int32 [n], after BOS, read without teach-driven writes for the rows that begin with them;
        room: tokens of the longest such row."""
        row = np.concatenate([[self.tokenizer.bos_id], tokens]).astype(np.int32)
        size = self.streamer.rule.chunk_size
        if self.model.stream_memories():
            return Prefix(None, fast, row)
        whole = len(row) // size * size
        carry: Carry | None = self.model.init_carry(1, whole + _up(size + room, 16))
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
        bos = np.array([self.tokenizer.bos_id], np.int32)
        head = bos if prefix is None else prefix.rest
        ends = [len(row) for row in rows] if tails is None else list(tails)
        order = sorted(range(len(rows)), key=lambda i: (len(rows[i]), ends[i]))
        found: list[np.ndarray] = [np.zeros(0)] * len(rows)
        start = fast if prefix is None else prefix.fast
        if self.frozen is not self.model and self.model.spec.memory.scope == "example":
            start = jax.tree.map(lambda t: t[0], start)
        batch_size = 1 if self.alone else batch_size
        for first in range(0, len(order), batch_size):
            chosen = order[first : first + batch_size]
            width = _up(len(head) + max(len(rows[i]) for i in chosen), 16)
            most = _up(max(ends[i] for i in chosen), 8 if tails is not None else 16)
            tokens = np.full((batch_size, width), self.tokenizer.pad_id, np.int32)
            segments = np.zeros((batch_size, width), np.int32)
            at = np.zeros((batch_size, most), np.int32)
            targets = np.full((batch_size, most), NO_TARGET, np.int32)
            for b, i in enumerate(chosen):
                row = np.concatenate([head, rows[i]])
                tokens[b, : len(row)], segments[b, : len(row)] = row, 1
                at[b, : ends[i]] = np.arange(len(row) - ends[i], len(row)) - 1
                targets[b, : ends[i]] = row[len(row) - ends[i] :]
            carry = None if prefix is None else prefix.carry
            got = np.asarray(_losses(self.frozen, params, start, carry, tokens, segments, at, targets))
            for b, i in enumerate(chosen):
                found[i] = got[b, : ends[i]].astype(np.float64)
        return found


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


def _up(count: int, multiple: int) -> int:
    return multiple * -(-count // multiple)


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
