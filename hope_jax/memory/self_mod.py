"""Self-modifying Titans: memories that make their own keys, values, rates and decays (Eqs. 83-93).

Per token, k = M_k(x), v = M_v(x), eta = eta_scale softplus(M_eta(x)), alpha = sigmoid(M_alpha(x) + b_alpha),
q = x W_q (or M_q(x)), o = M_memory(q). Generators are written every `chunk_size` tokens and M_memory every
`chunk_size_memory`, each with the tokens of its chunk as `hope_jax.kernels.self_mod` describes; what a chunk
reads never depends on its own write. As the generators do not read M_memory, they run first, over all tokens.
Everything is for one example and one layer; rows are tokens.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.nn.initializers import constant

from hope_jax.core import trees
from hope_jax.core.ranges import Count, NonNegative, Whole
from hope_jax.core.types import Array, PyTree
from hope_jax.kernels import self_mod as kernel
from hope_jax.kernels.causal_conv import causal_conv
from hope_jax.kernels.self_mod import Tokens as Streams
from hope_jax.memory import flops
from hope_jax.memory.flops import Flops
from hope_jax.memory.initial import ArrayKinds, Entries, Initial, transposed
from hope_jax.memory.norms import unit_norm
from hope_jax.memory.state import Reduce, WriteStats, own, relative, zero_stats

GENERATORS, MEMORY = "generators", "memory"

ALPHA_BIAS = 7.0
"""First bias of a retention gate that has one: alpha starts near sigmoid(7) = 0.9991."""


class SelfModState(NamedTuple):
    """What one context has written, in the parameters' dtype.

    weights: the memories as whole weights (not deltas), {"k": {"w_in", "w_out"[, "w_skip"]}, ...}.
    momentum: their buffers, of the same shapes; () without momentum.
    """

    weights: PyTree
    momentum: PyTree


class SelfModCarry(NamedTuple):
    """What crosses calls besides the fast state.

    conv: [w - 1, D] the last inputs of the convolution. generators, memory: streams of the unfinished chunk
    of a level whose chunk spans several calls, C tokens each (token i of the chunk in row i); 0 tokens for
    a level whose chunk divides the online chunk: it leaves tokens over only where a stream ends.
    """

    conv: Array
    generators: Streams
    memory: Streams


@dataclass(frozen=True)
class SelfModifyingTitans(kernel.Rule):
    """Self-modifying Titans (Eqs. 83-93), the first memory of `hope_selfmod`."""

    chunk_size: Count = 8  # tokens between writes of the generators
    chunk_size_memory: Count = 64  # tokens between writes of M_memory
    eta_scale: NonNegative = 1e-3  # factor of their rates eta; 0: they only decay
    projection_skip: bool = True  # learned skip of M_eta and M_alpha; the others' identity residual stays
    adaptive_q: bool = False  # queries from a memory M_q instead of a fixed projection
    local_conv_window: Whole = 4  # causal depthwise convolution before it, within documents, tokens; 0: off
    use_alpha: bool = True  # data-dependent retention; False: 1
    alpha_init: Literal["style", "near_one", "half"] = "style"  # style: near_one if modern, half if reference
    qk_norm: bool = True  # keys and queries of norm 1
    value_norm: NonNegative = 0.0  # that values are scaled to; 0: as M_v makes them (Eqs. 83-93)


@dataclass(frozen=True)
class SelfMod(SelfModifyingTitans):
    """Self-modifying Titans of one width: a `StreamMemory` of `hope_jax.memory.state`.

    dim: D. online_chunk: tokens of an online chunk (N); each chunk size divides it or is a multiple of it.
    alpha_near_one: the retention gate has a bias outside the decayed weights. eps: least norm that `qk_norm`
    divides by.
    """

    dim: int = 0
    online_chunk: int = 1
    alpha_near_one: bool = True
    eps: float = 1e-6

    @property
    def conv_window(self) -> int:
        """See `StreamMemory.conv_window`."""
        return self.local_conv_window

    def entries(self, begin: Initial) -> Entries:
        """See `AnyMemory.entries`; matrices (out, in)."""
        dim, entries = self.dim, dict[str, Any]()
        init, residual = transposed(begin.matrix()), transposed(begin.matrix(residual=True))
        if self.conv_window:
            entries["conv"] = (begin.conv(self.conv_window), (self.conv_window, dim))
        if not self.adaptive_q:
            entries["w_q"] = (init, (dim, dim))
        for name in (*self.generator_names(), "memory"):
            out = 1 if name in ("eta", "alpha") else dim
            skip = {"w_skip": (init, (out, dim))} if self.projection_skip and out != dim else {}
            entries[name] = {"w_in": (init, (dim, dim)), "w_out": (residual, (out, dim)), **skip}
        if self.use_alpha and self.alpha_near_one:
            entries["b_alpha"] = (constant(ALPHA_BIAS), ())
        return entries

    def periods(self) -> dict[str, int]:
        """See `AnyMemory.periods`."""
        return {GENERATORS: self.chunk_size, MEMORY: self.chunk_size_memory}

    def flops(self, tokens: int) -> list[Flops]:
        """See `AnyMemory.flops`: with its writes 36 products with a D x D matrix, twice that backward."""
        return [flops.matrices(72.0 * self.dim * self.dim)]

    def generator_names(self) -> tuple[str, ...]:
        """The memories that are written with `chunk_size`."""
        q, alpha = ("q",) if self.adaptive_q else (), ("alpha",) if self.use_alpha else ()
        return ("k", "v", *q, "eta", *alpha)

    def without_gradient(self, tokens: int) -> tuple[str, ...]:
        """Generators other than M_q act through writes alone: all of them if no write of a memory that makes
        outputs (M_memory, M_q) is read again, and those of a write's direction if eta is 0."""
        chunk = min(self.chunk_size, self.chunk_size_memory) if self.adaptive_q else self.chunk_size_memory
        decay = ("alpha", "b_alpha") if self.use_alpha else ()
        if chunk >= tokens:
            return ("k", "v", "eta", *decay)
        return () if self.eta_scale else ("k", "v", "eta")

    def init(self, params: PyTree) -> SelfModState:
        """The state of a context that has written nothing, for parameters of one layer."""
        weights = {name: params[name] for name in (*self.generator_names(), "memory")}
        return SelfModState(weights, trees.zeros_like(weights) if self.momentum else ())

    def init_carry(self, dtype: jnp.dtype) -> SelfModCarry:
        """The carry before the first token; dtype: that of the inputs."""

        def streams(chunk: int) -> Streams:
            rows, wide = chunk if chunk > self.online_chunk else 0, jnp.promote_types(dtype, jnp.float32)
            vectors, scalars = jnp.zeros((rows, self.dim), dtype), jnp.zeros(rows, wide)
            return Streams(vectors, vectors, scalars, scalars)

        conv = jnp.zeros((max(self.conv_window - 1, 0), self.dim), dtype)
        return SelfModCarry(conv, streams(self.chunk_size), streams(self.chunk_size_memory))

    def move(self, old: PyTree, new: PyTree, fast: SelfModState) -> SelfModState:
        """The state with its weights moved by new - old; momentum stays."""
        old, new = ({name: tree[name] for name in fast.weights} for tree in (old, new))
        return fast._replace(weights=jax.tree.map(lambda w, a, b: w + (b - a), fast.weights, old, new))

    def read(
        self,
        params: PyTree,
        fast: SelfModState | None,
        carry: SelfModCarry | None,
        x_nd: Array,
        position: Array | int,
        active_n: Array | None = None,
        segments: Array | None = None,
        *,
        reduce: Reduce = own,
    ) -> tuple[Array, SelfModState | None, SelfModCarry | None, dict[str, WriteStats]]:
        """Reads n tokens and writes the chunks that end among them; see `StreamMemory.read`.

        `position` is a multiple of `online_chunk`, and n <= `online_chunk` (fewer only in a stream's last
        call); with carry None a sequence of any length, whose unfinished chunks are not written. fast None:
        read the initial weights, write nothing. A shared state becomes a mean at the end of every chunk.
        Padding has eta 0 and alpha 1.
        """
        history = None if carry is None else carry.conv
        if "conv" in params:
            x_nd, history = causal_conv(x_nd, params["conv"], history, segments)
        state, dtype = self.init(params) if fast is None else fast, x_nd.dtype
        level = partial(self._level, params, state, fast is not None, position, reduce)
        bias = {name: params[name] for name in ("b_alpha",) if name in params}
        active = jnp.ones(len(x_nd), bool) if active_n is None else active_n
        active = active.astype(jnp.promote_types(dtype, jnp.float32))
        generate = partial(self._streams, dtype), bias, (x_nd, active), carry and carry.generators
        written, first, (q, tokens), g_stats = level(self.generator_names(), self.chunk_size, *generate)
        if not self.adaptive_q:
            q = self._unit(x_nd @ params["w_q"].astype(dtype)).astype(dtype)
        recall = (lambda _, reads, kept: (reads["memory"].astype(dtype), kept)), (), (q, tokens)
        last = carry and carry.memory
        memory, second, o, m_stats = level(("memory",), self.chunk_size_memory, *recall, last)
        if carry is not None:
            conv = carry.conv if history is None else history.astype(carry.conv.dtype)
            carry = SelfModCarry(conv, first, second)
        stats = {GENERATORS: g_stats, MEMORY: m_stats}
        if fast is None:
            return o, None, carry, stats
        momentum = {**written.momentum, **memory.momentum} if self.momentum else ()
        return o, SelfModState({**written.weights, **memory.weights}, momentum), carry, stats

    def _level(
        self,
        params: PyTree,
        state: SelfModState,
        writes: bool,
        position: Array | int,
        reduce: Reduce,
        names: tuple[str, ...],
        chunk: int,
        make: kernel.Make,
        theta: PyTree,
        inputs: PyTree,
        pending: Streams | None,
    ) -> tuple[SelfModState, Streams | None, Any, WriteStats]:
        """Reads n tokens with the memories `names`, and writes them; make, theta, inputs: of `kernel.sweep`.
        pending: of the carry. Returns the new state and `pending`, what `make` has made, and statistics."""
        slow = {name: params[name] for name in names}
        weights, buffers = ({name: part[name] for name in names} if part else None for part in state)
        # A shared state becomes the mean of what each example has made of it.
        mean = None if reduce is own else lambda group: tuple(t / reduce(1) for t in reduce(group))
        constants = kernel.Pass(make, kernel.layout_of(slow), self, chunk, mean)
        call = constants, kernel.stack(weights, buffers), theta, inputs
        if not writes:
            return SelfModState(weights, ()), pending, kernel.read_chunk(*call)[0], zero_stats()
        if pending is not None and len(pending.eta):
            group, pending, outs, stats = _gather(call, slow, pending, jnp.asarray(position) % chunk)
        else:
            group, outs, stats = _whole(call, slow)
        new, buffers = kernel.unstack(group, constants.layout)
        return SelfModState(new, buffers or ()), pending, outs, stats

    def _streams(
        self, dtype: jnp.dtype, theta: PyTree, reads: dict[str, Array], active: Array
    ) -> tuple[tuple[Any, Streams], Streams]:
        """Queries (() where they are not the memories') and streams from what the generators read; active:
        [n] of 0 and 1."""
        rate = reads["eta"][:, 0]
        log_alpha = jnp.zeros_like(rate)
        if self.use_alpha:
            bias = theta.get("b_alpha", 0.0)
            log_alpha = jax.nn.log_sigmoid(reads["alpha"][:, 0] + bias).astype(rate.dtype)
        eta = self.eta_scale * jax.nn.softplus(rate)
        eta, log_alpha = (t * active.astype(t.dtype) for t in (eta, log_alpha))
        keys, values = self._unit(reads["k"]), reads["v"]
        if self.value_norm:
            values = self.value_norm * unit_norm(values, self.eps)
        tokens = Streams(keys.astype(dtype), values.astype(dtype), eta, log_alpha)
        return (self._unit(reads["q"]).astype(dtype) if self.adaptive_q else (), tokens), tokens

    def _unit(self, x: Array) -> Array:
        return unit_norm(x, self.eps) if self.qk_norm else x


_Call: TypeAlias = tuple[kernel.Pass, kernel.Group, PyTree, PyTree]
"""Arguments of `kernel.sweep` and `kernel.read_chunk`: constants, group, theta, inputs."""


def _whole(call: _Call, slow: PyTree) -> tuple[kernel.Group, Any, WriteStats]:
    """Reads and writes the chunks that end in the call, and reads the tokens that are left over."""
    constants, group, theta, inputs = call
    tokens = inputs[0].shape[0]
    end = tokens // constants.chunk * constants.chunk
    parts, stats = [], zero_stats()
    if end:
        whole = jax.tree.map(lambda t: t[:end], inputs)
        group, outs, changes = kernel.sweep(constants, group, theta, whole)
        parts.append(outs)
        stats = _stats(constants, slow, group, changes)
    if end < tokens or not tokens:
        rest = jax.tree.map(lambda t: t[end:], inputs)
        parts.append(kernel.read_chunk(constants, group, theta, rest)[0])
    joined = jax.tree.map(lambda *t: jnp.concatenate(t), *parts)
    return group, joined, stats._replace(pending_tokens=jnp.asarray(tokens - end, float))


def _gather(call: _Call, slow: PyTree, pending: Streams, at: Array) -> tuple[Any, Streams, Any, WriteStats]:
    """A call inside a longer chunk, from token `at` of it: enters the streams of the call, and writes the
    chunk if it ends with the call."""
    constants, group, *_ = call
    outs, tokens = kernel.read_chunk(*call)
    enter = partial(jax.lax.dynamic_update_slice_in_dim, start_index=at, axis=0)
    pending = jax.tree.map(lambda kept, new: enter(kept, new.astype(kept.dtype)), pending, tokens)
    left = (at + tokens.eta.shape[0]) % constants.chunk

    def write(group: kernel.Group) -> tuple[kernel.Group, WriteStats]:
        new = kernel.write_chunk(group, constants.layout, pending, constants.rule)
        new = constants.mean(new) if constants.mean else new
        changes = jax.tree.map(lambda t: t[None], kernel.change(constants.layout, new, group))
        return new, _stats(constants, slow, new, changes)

    group, stats = jax.lax.cond(left == 0, write, lambda group: (group, zero_stats()), group)
    return group, pending, outs, stats._replace(pending_tokens=left.astype(float))


def _stats(constants: kernel.Pass, slow: PyTree, group: kernel.Group, changes: PyTree) -> WriteStats:
    """Statistics of P written chunks. slow: the parameters. group: after the last. changes: [P] by matrix."""
    added = jax.tree.map(jnp.subtract, kernel.unstack(group, constants.layout)[0], slow)
    slow_m, added_m = (
        jnp.stack([trees.safe_norm(m.astype(float)) for m in jax.tree.leaves(trees.stop_gradient(tree))])
        for tree in (slow, added)
    )
    changes_mp = jnp.stack(jax.tree.leaves(changes))
    periods = jnp.asarray(changes_mp.shape[1], float)
    return zero_stats()._replace(
        grad_norm=changes_mp.sum(),
        periods=periods,
        chunk_tokens=periods * constants.chunk,
        gate_hit=periods,
        updates_applied=periods,
        write_norm=relative(changes_mp, slow_m[:, None]).max(0).sum(),
        delta_norm=relative(added_m, slow_m).max(),
    )


ARRAYS: ArrayKinds = (
    ("self_mod_scale", ("dim",), "of the norm before self-modifying Titans"),
    ("self_mod.conv", ("window", "dim"), "as that of attention"),
    ("self_mod.w_q", ("in", "out"), "x @ w, queries"),
    ("self_mod.b_alpha", (), "bias of the retention gate's logit; no write changes it"),
    ("self_mod.{k,v,q,memory}.w_in", ("hidden", "dim"), "w @ x; what writes start from"),
    ("self_mod.{k,v,q,memory}.w_out", ("dim", "hidden"), "w @ x; what writes start from"),
    ("self_mod.{eta,alpha}.w_in", ("hidden", "dim"), "w @ x; what writes start from"),
    ("self_mod.{eta,alpha}.w_{out,skip}", ("one", "in"), "w @ x; what writes start from"),
)
"""What self-modifying Titans are exported as."""
