"""What reads record and writes consume: the protocols that memories keep, for one example and one layer.

A memory that teach signals drive (`Memory`) is `init(params) -> fast`, `read(params, fast, x, taps) -> y,
trace`, and `write(params, norms, fast, trace, signal) -> fast, stats`. One that writes itself while it reads
(`StreamMemory`) has no `write`: its `read` returns the new fast state.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from hope_jax.core.types import Array, PyTree
from hope_jax.memory.flops import Flops
from hope_jax.memory.initial import Entries, Initial
from hope_jax.memory.levels import MemoryOptions


@dataclass(frozen=True)
class Reduce:
    """Joins what the examples have that share a fast state. axes: the mapped axes that they are on; (): each
    has its own."""

    axes: tuple[str, ...] = ()

    def __call__(self, tree: PyTree) -> PyTree:
        """The sum over the examples."""
        return jax.lax.psum(tree, self.axes) if self.axes else tree

    def gather(self, tree: PyTree, axis: int) -> PyTree:
        """The examples' arrays one after the other along an axis."""
        for name in self.axes:
            tree = jax.lax.all_gather(tree, name, axis=axis, tiled=True)
        return tree


own = Reduce()
"""Of a fast state that belongs to one example."""


class Taps(NamedTuple):
    """Zeros that a read adds where a level's error factors stand; their cotangents are these factors, and in
    a `WriteSignal` what the teach rule has made of them.

    output: [n, D] at the level's output. hidden: [n, H] at its hidden pre-activation; None: not wanted.
    """

    output: Array
    hidden: Array | None = None


class WriteSignal(NamedTuple):
    """The processed teach signal of one chunk, for one layer and one example.

    block: [n, D] signal at the block's output. own: the level's name -> signal at its own taps; {} where
    levels learn from the block's output. On its way to `HopeModel.write` it holds one such mapping for each
    memory, by name.
    surprise_n: [n] surprise per token; counted_n: bool [n] tokens that it is averaged over.
    active_n: bool [n] tokens with a teach signal.
    """

    block: Array
    own: dict[str, Any]
    surprise_n: Array
    counted_n: Array
    active_n: Array

    def mask(self, options: MemoryOptions) -> Array:
        """Which tokens take part in a write, bool [n]. Under `l2` unsurprising tokens are masked too."""
        if options.surprise_threshold is None or options.surprise_metric != "l2":
            return self.active_n
        return self.active_n & (self.surprise_n >= options.surprise_threshold)


class WriteStats(NamedTuple):
    """Counts and sums over the writes of one level in one chunk, [] each, in JAX's default float
    (float64 in double precision, else float32).

    grad_norm: over applied writes, the sum over weights of |g|_2. periods: periods that ended.
    chunk_tokens: unmasked tokens of the periods that ended. gate_hit: periods whose gate was open.
    updates_applied: periods written. tokens_flushed: tokens of partial periods written at the end of
    the stream. pending_tokens: tokens waiting for their period to end. surprise_value: sum over periods
    of their mean surprise. write_clip_hits, delta_clip_hits: matrices whose bound was active.
    write_norm: over applied writes, the largest |write|_F / |theta|_F of the level's matrices, after bounds.
    delta_norm: the largest |delta|_F / |theta|_F after the last period that ended (0: none has). theta: the
    slow weights; a matrix counts with its bias.
    """

    grad_norm: Array
    periods: Array
    chunk_tokens: Array
    gate_hit: Array
    updates_applied: Array
    tokens_flushed: Array
    pending_tokens: Array
    surprise_value: Array
    write_clip_hits: Array
    delta_clip_hits: Array
    write_norm: Array
    delta_norm: Array


def zero_stats() -> WriteStats:
    """The statistics before any write."""
    return WriteStats(*(jnp.zeros((), float) for _ in WriteStats._fields))


def add_stats(a: WriteStats, b: WriteStats) -> WriteStats:
    """Sums of both, except for `pending_tokens` and `delta_norm`, of which the later value counts."""
    total = WriteStats(*(x + y for x, y in zip(a, b, strict=True)))
    delta_norm = jnp.where(b.periods > 0, b.delta_norm, a.delta_norm)
    return total._replace(pending_tokens=b.pending_tokens, delta_norm=delta_norm)


def total_stats(each: WriteStats) -> WriteStats:
    """`add_stats` over the first axis, of parts [P] in each of which a period ended; P may be 0."""
    total = jax.tree.map(lambda t: t.sum(0), each)
    return total._replace(
        pending_tokens=each.pending_tokens[-1:].sum(0), delta_norm=each.delta_norm[-1:].sum(0)
    )


def relative(size: Array, norm: Array) -> Array:
    """The quotient size / norm, and 0 where both are zero."""
    return size / jnp.maximum(norm, jnp.sqrt(jnp.finfo(norm.dtype).tiny))


class AnyMemory(Protocol):
    """What both kinds of memory know of themselves; implementations are frozen, hashable values."""

    def entries(self, begin: Initial) -> Entries:
        """The parameters of one layer, as `initial.Params` takes them."""

    def periods(self) -> dict[str, int]:
        """Tokens between writes, by the name under which these are counted; levels first, in their order."""

    def without_gradient(self, tokens: int) -> tuple[str, ...]:
        """Names of the parameters that no read of a context of `tokens` tokens learns from; of one token,
        those that act through writes alone."""
        return ()

    def flops(self, tokens: int) -> list[Flops]:
        """Useful operations of a token in rows of `tokens`, of each of its stretches in order."""

    def init(self, params: PyTree) -> PyTree:
        """The fast state of a context that has written nothing, for parameters of one layer."""


class Memory(AnyMemory, Protocol):
    """A memory that teach signals write."""

    def taps(self) -> dict[str, tuple[int, int]]:
        """Widths of the taps that this memory learns from, by level: of the output, and of the hidden layer
        (0: no tap there)."""

    def norms(self, params: PyTree) -> PyTree:
        """Norms of one layer's slow weights, which every write needs, computed once for many writes."""

    def read(
        self, params: PyTree, fast: PyTree | None, x: Array, taps: dict[str, Taps]
    ) -> tuple[Array, PyTree]:
        """x [n, D] -> y [n, D], and the trace that a write needs. fast None: the slow weights alone."""

    def write(
        self,
        params: PyTree,
        norms: PyTree,
        fast: PyTree,
        trace: PyTree,
        signal: WriteSignal,
        position: Array,
        *,
        reduce: Reduce,
        last: bool,
    ) -> tuple[PyTree, dict[str, WriteStats]]:
        """Writes one chunk, whose first token stands at `position`: the new state, and statistics by level.

        reduce: over the examples that share `fast`. last: the stream ends with this chunk: partial periods
        are flushed or dropped.
        """


class StreamMemory(AnyMemory, Protocol):
    """A memory that writes itself while it reads."""

    @property
    def conv_window(self) -> int:
        """Taps of its convolution; 0: none."""

    def init_carry(self, dtype: jnp.dtype) -> PyTree:
        """What crosses calls beside the fast state, before the first token; dtype: that of the inputs."""

    def move(self, old: PyTree, new: PyTree, fast: PyTree) -> PyTree:
        """Moves the state, which was written on top of the parameters `old`, onto `new`."""

    def read(
        self,
        params: PyTree,
        fast: PyTree | None,
        carry: PyTree | None,
        x_nd: Array,
        position: Array,
        active_n: Array,
        segments: Array | None,
        *,
        reduce: Reduce,
    ) -> tuple[Array, PyTree | None, PyTree | None, dict[str, WriteStats]]:
        """Reads n tokens [n, D], the first at `position`, and writes the chunks that end among them.

        fast None: as `init` gives it. carry None: x is a whole sequence from position 0. active_n: bool [n],
        False: padding, which changes nothing; None: all True. segments: int [w - 1 + n] document of each
        token of the convolution's history and of x, see `causal_conv`; None: all are of one. reduce: over the
        examples that share `fast`; a shared state becomes the mean of what each of them has made of it.
        Returns y [n, D] in x's dtype, the new state and carry (None where None was given), and statistics by
        level.
        """
