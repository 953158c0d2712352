"""Self-modifying Titans: memories that make their own keys, values, rates and decays (Eqs. 83-93).

Per token, k = M_k(x), v = M_v(x), eta = eta_scale softplus(M_eta(x)), alpha = sigmoid(M_alpha(x) + b_alpha),
q = x W_q (or M_q(x)), o = M_memory(q). Generators are written every `chunk_size` tokens and M_memory every
`chunk_size_memory`, each with the tokens of its chunk as `hope_jax.kernels.self_mod` describes; what a chunk
reads never depends on its own write. As the generators do not read M_memory, they run first, over all tokens.
Everything is for one example and one layer; rows are tokens.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn.initializers import constant

from hope_jax import trees
from hope_jax.kernels import self_mod as kernel
from hope_jax.kernels.causal_conv import causal_conv
from hope_jax.kernels.self_mod import Group, Inputs, Layout, Products
from hope_jax.kernels.self_mod import Tokens as Streams
from hope_jax.memory import flops
from hope_jax.memory.flops import Flops
from hope_jax.memory.initial import ArrayKinds, Entries, Initial, transposed
from hope_jax.memory.state import Reduce, WriteStats, own, relative, zero_stats
from hope_jax.types import Array, PyTree

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
    """What crosses calls besides.

    conv: [w - 1, D] the last inputs of the convolution. generators, memory: streams of the unfinished chunk
    of a level whose chunk spans several calls, C tokens each (token i of the chunk in row i); 0 tokens for
    a level whose chunk divides the online chunk: it leaves tokens over only where a stream ends.
    """

    conv: Array
    generators: Streams
    memory: Streams


def _recall(dtype: jnp.dtype, _: PyTree, reads: dict[str, Array], tokens: Streams) -> tuple[Array, Streams]:
    """What M_memory reads, and the streams that it is written with."""
    return reads["memory"].astype(dtype), tokens


@dataclass(frozen=True)
class SelfMod:
    """The constants of self-modifying Titans: a `StreamMemory` of `hope_jax.memory.state`.

    dim: D. online_chunk: tokens of an online chunk (N); each chunk size divides it or is a multiple of it.
    chunk_size, chunk_size_memory: tokens between writes of the generators, of M_memory. eta_scale: factor
    of eta. qk_norm: unit keys and queries. adaptive_q: queries from M_q instead of W_q. use_alpha: decay by
    M_alpha; False: none. rank1: the factor (alpha I - eta k k^T) of the write; False: alpha.
    projection_skip: M_eta and M_alpha have a W_skip (read off the parameters; the identity residual of the
    others always stays). objective: inner loss. stopgrad_vhat: no inner gradient through the target.
    momentum: beta of the writes. conv_window: w, taps of the convolution; 0: none. eps: least norm that
    `qk_norm` divides by. value_norm: norm that values are scaled to; 0: none.
    alpha_near_one: the retention gate has a bias outside the decayed weights.
    """

    dim: int
    online_chunk: int
    chunk_size: int = 8
    chunk_size_memory: int = 64
    eta_scale: float = 1e-3
    qk_norm: bool = True
    adaptive_q: bool = False
    use_alpha: bool = True
    rank1: bool = True
    projection_skip: bool = True
    objective: Literal["l2", "dot"] = "l2"
    stopgrad_vhat: bool = True
    momentum: float = 0.0
    conv_window: int = 0
    eps: float = 1e-6
    value_norm: float = 0.0
    alpha_near_one: bool = True

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

    @property
    def _rule(self) -> kernel.Rule:
        return kernel.Rule(self.objective, self.stopgrad_vhat, self.rank1, self.momentum)

    def periods(self) -> dict[str, int]:
        """See `StreamMemory.periods`."""
        return {GENERATORS: self.chunk_size, MEMORY: self.chunk_size_memory}

    def flops(self, tokens: int) -> list[Flops]:
        """See `StreamMemory.flops`: with its writes 36 products with a D x D matrix, twice that backward."""
        del tokens
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

    def rebase(self, params: PyTree, fast: SelfModState) -> SelfModState:
        """The same values, cut off from what wrote them: the gradient at the state goes to the initial
        weights, stopgrad(state) + (theta - stopgrad(theta)), and none to the momentum (SPEC §4)."""
        weights = jax.tree.map(
            lambda now, theta: jax.lax.stop_gradient(now) + (theta - jax.lax.stop_gradient(theta)),
            fast.weights,
            {name: params[name] for name in fast.weights},
        )
        return SelfModState(weights, trees.stop_gradient(fast.momentum))

    def move(self, old: PyTree, new: PyTree, fast: SelfModState) -> SelfModState:
        """The state with its weights moved by new - old; momentum stays."""
        weights = {
            name: jax.tree.map(lambda w, a, b: w + (b - a), value, old[name], new[name])
            for name, value in fast.weights.items()
        }
        return fast._replace(weights=weights)

    def read(
        self,
        params: PyTree,
        fast: SelfModState | None,
        carry: SelfModCarry | None,
        x_nd: Array,
        *,
        position: Array | int,
        reduce: Reduce = own,
        active_n: Array | None = None,
        segments: Array | None = None,
    ) -> tuple[Array, SelfModState | None, SelfModCarry | None, dict[str, WriteStats]]:
        """Reads n tokens and writes the chunks that end among them.

        x_nd: [n, D], the first at `position`, a multiple of `online_chunk`, with n <= `online_chunk` (fewer
        only in a stream's last call); with carry None: a whole sequence from position 0 of any length,
        whose unfinished chunks are not written. fast None: read the initial weights, write nothing.
        reduce: sums over the examples that share `fast`; a shared state becomes the mean of what each of
        them would make of it, at the end of every chunk.
        active_n: bool [n], False: padding, which changes nothing (eta 0, alpha 1); None: all True.
        segments: int [w - 1 + n] document of each token of the convolution's history and of x, see
        `causal_conv`; None: all are of one.
        Returns o [n, D] in x's dtype, the new state and carry (None where None was given), and the
        statistics of each level.
        """
        history = None if carry is None else carry.conv
        if "conv" in params:
            x_nd, history = causal_conv(x_nd, params["conv"], history, segments)
        state = self.init(params) if fast is None else fast
        pending = None if carry is None or fast is None else carry
        generators, first, (q, tokens), g_stats = self._generate(
            params, state, pending, x_nd, position, reduce, fast, active_n
        )
        call = _Call(self, self.chunk_size_memory, ("memory",), params, position, reduce, fast is not None)
        recall = partial(_recall, x_nd.dtype)
        memory, second, o, m_stats = call.run(recall, (), state, pending and pending.memory, q, tokens)
        stats = {GENERATORS: g_stats, MEMORY: m_stats}
        if carry is not None:
            kept = carry.conv if history is None else history.astype(carry.conv.dtype)
            carry = carry._replace(conv=kept)
            if fast is not None:
                carry = SelfModCarry(kept, first, second)
        if fast is None:
            return o, None, carry, {name: zero_stats() for name in stats}
        momentum = {**generators.momentum, **memory.momentum} if self.momentum else ()
        return o, SelfModState({**generators.weights, **memory.weights}, momentum), carry, stats

    def _generate(
        self,
        params: PyTree,
        state: SelfModState,
        carry: SelfModCarry | None,
        x: Array,
        position: Array | int,
        reduce: Reduce,
        fast: SelfModState | None,
        active_n: Array | None,
    ) -> tuple[SelfModState, Streams, tuple[Array, Streams], WriteStats]:
        """The pass over the generators: their state, pending streams, (queries, streams) of all tokens."""
        names = self.generator_names()
        call = _Call(self, self.chunk_size, names, params, position, reduce, fast is not None)
        theta = {name: params[name] for name in ("b_alpha",) if name in params}
        make = partial(self._make_streams, x.dtype)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        active = () if active_n is None else active_n.astype(wide)
        new, pending, (q, tokens), stats = call.run(make, theta, state, carry and carry.generators, x, active)
        if not self.adaptive_q:
            q = self._unit(x @ params["w_q"].astype(x.dtype)).astype(x.dtype)
        return new, pending, (q, tokens), stats

    def _make_streams(
        self, dtype: jnp.dtype, theta: PyTree, reads: dict[str, Array], active: Any
    ) -> tuple[tuple[Any, Streams], Streams]:
        """Queries (() where they are not the memories') and streams from what the generators read; active:
        [n] of 0 and 1, or ()."""
        rate = reads["eta"][:, 0]
        log_alpha = jnp.zeros_like(rate)
        if self.use_alpha:
            log_alpha = jax.nn.log_sigmoid(reads["alpha"][:, 0] + theta.get("b_alpha", 0.0)).astype(
                rate.dtype
            )
        eta = self.eta_scale * jax.nn.softplus(rate)
        if not isinstance(active, tuple):
            eta, log_alpha = (t * active.astype(t.dtype) for t in (eta, log_alpha))
        keys, values = self._unit(reads["k"]), self._scaled(reads["v"])
        tokens = Streams(keys.astype(dtype), values.astype(dtype), eta, log_alpha)
        return (self._unit(reads["q"]).astype(dtype) if self.adaptive_q else (), tokens), tokens

    def _unit(self, x: Array) -> Array:
        return self._normed(x) if self.qk_norm else x

    def _scaled(self, v: Array) -> Array:
        return self.value_norm * self._normed(v) if self.value_norm else v

    def _normed(self, x: Array) -> Array:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return wide / jnp.maximum(trees.safe_norm(wide, axis=-1, keepdims=True), self.eps)


class _Call:
    """One call's reads and writes of one group of memories."""

    def __init__(
        self,
        memory: SelfMod,
        chunk: int,
        names: tuple[str, ...],
        params: PyTree,
        position: Array | int,
        reduce: Reduce,
        writes: bool,
    ) -> None:
        self.memory, self.chunk, self.names = memory, chunk, names
        self.position, self.reduce, self.writes = position, reduce, writes
        self.slow = {name: params[name] for name in names}

    def layout(self, state: SelfModState) -> Layout:
        return kernel.layout_of({name: state.weights[name] for name in self.names})

    def run(
        self,
        make: kernel.Make,
        theta: PyTree,
        state: SelfModState,
        pending: Streams | None,
        x: Array,
        other: PyTree,
    ) -> tuple[SelfModState, Streams | None, Any, WriteStats]:
        """Reads x [n, D] chunk by chunk; make, theta, other: of `hope_jax.kernels.self_mod.sweep`."""
        layout, momentum = self.layout(state), self.memory.momentum
        weights = {name: state.weights[name] for name in self.names}
        buffers = {name: state.momentum[name] for name in self.names} if momentum else None
        group = Group(kernel.stack(weights), None if buffers is None else kernel.stack(buffers))
        constants = kernel.Pass(make, layout, self.memory._rule, self.chunk)
        inputs = Inputs(x, other)
        if not self.writes:
            return SelfModState(weights, ()), pending, _read(constants, group, theta, inputs)[0], zero_stats()
        if pending is not None and len(pending.eta):
            group, pending, outs, stats = self._gather(constants, group, theta, inputs, pending)
        else:
            group, outs, stats = self._whole(constants, group, theta, inputs)
        after = () if group.momentum is None else kernel.unstack(group.momentum, layout)
        return SelfModState(kernel.unstack(group.weights, layout), after), pending, outs, stats

    def _whole(
        self, constants: kernel.Pass, group: Group, theta: PyTree, inputs: Inputs
    ) -> tuple[Group, Any, WriteStats]:
        """Chunks that begin and end in the call, then the tokens left over, which are read only."""
        whole, rest = divmod(inputs.x.shape[0], self.chunk)
        parts, norms, end = [], None, whole * self.chunk
        if whole:
            first = jax.tree.map(lambda t: t[:end], inputs)
            over = kernel.sweep if self.reduce is own else self._together
            group, outs, norms = over(constants, group, theta, first)
            parts.append(outs)
        if rest or not parts:
            last = jax.tree.map(lambda t: t[end:], inputs)
            parts.append(_read(constants, group, theta, last)[0])
        joined = jax.tree.map(lambda *t: jnp.concatenate(t), *parts)
        stats = zero_stats() if norms is None else self._stats(constants.layout, norms, group)
        return group, joined, stats._replace(pending_tokens=jnp.asarray(rest, float))

    def _together(
        self, constants: kernel.Pass, group: Group, theta: PyTree, inputs: Inputs
    ) -> tuple[Group, Any, Array]:
        """`sweep` for examples that share the group: after every chunk it becomes their mean."""

        def step(group: Group, inputs: Inputs) -> tuple[Group, tuple[Any, Array]]:
            outs, tokens = _read(constants, group, theta, inputs)
            new = self._write(constants, group, tokens)
            return new, (outs, _change(constants.layout, new, group))

        chunks = jax.tree.map(lambda t: t.reshape(-1, self.chunk, *t.shape[1:]), inputs)
        group, (outs, norms) = jax.lax.scan(jax.checkpoint(step, prevent_cse=False), group, chunks)
        return group, jax.tree.map(lambda t: t.reshape(-1, *t.shape[2:]), outs), norms

    def _gather(
        self, constants: kernel.Pass, group: Group, theta: PyTree, inputs: Inputs, pending: Streams
    ) -> tuple[Group, Streams, Any, WriteStats]:
        """A call inside a longer chunk: its streams are entered, and written if the chunk ends with it."""
        outs, tokens = _read(constants, group, theta, inputs)
        at = jnp.asarray(self.position) % self.chunk
        pending = jax.tree.map(
            lambda kept, new: jax.lax.dynamic_update_slice_in_dim(kept, new.astype(kept.dtype), at, 0),
            pending,
            tokens,
        )
        left = (at + tokens.eta.shape[0]) % self.chunk

        def write(group: Group) -> tuple[Group, WriteStats]:
            new = self._write(constants, group, pending)
            return new, self._stats(constants.layout, _change(constants.layout, new, group)[None], new)

        group, stats = jax.lax.cond(left == 0, write, lambda group: (group, zero_stats()), group)
        return group, pending, outs, stats._replace(pending_tokens=left.astype(float))

    def _write(self, constants: kernel.Pass, group: Group, tokens: Streams) -> Group:
        new = Group(*kernel.write_chunk(*group, constants.layout, tokens, constants.rule))
        if self.reduce is own:
            return new
        examples = self.reduce(1)
        return jax.tree.map(lambda total: total / examples, self.reduce(new))

    def _stats(self, layout: Layout, norms_pm: Array, group: Group) -> WriteStats:
        """Of P written chunks. norms_pm: by matrix, of what each has changed. group: after the last."""
        slow = _matrices(self.slow)
        slow_m, periods = _norms(slow), jnp.asarray(norms_pm.shape[0], float)
        added = jax.tree.map(jnp.subtract, _matrices(kernel.unstack(group.weights, layout)), slow)
        return zero_stats()._replace(
            grad_norm=norms_pm.sum(),
            periods=periods,
            chunk_tokens=periods * self.chunk,
            gate_hit=periods,
            updates_applied=periods,
            write_norm=relative(norms_pm, slow_m).max(1).sum(),
            delta_norm=relative(_norms(added), slow_m).max(),
        )


def _read(constants: kernel.Pass, group: Group, theta: PyTree, inputs: Inputs) -> tuple[Any, Streams]:
    """Outputs and streams of tokens that are read with the group as it stands."""
    reads = kernel.read(Products(group), constants.layout, inputs.x)
    return constants.make(theta, reads, inputs.other)


def _change(layout: Layout, new: Group, old: Group) -> Array:
    """Frobenius norm [M] of what a write has changed in each matrix."""
    difference = jax.tree.map(jnp.subtract, *trees.stop_gradient((new.weights, old.weights)))
    return _norms(_matrices(kernel.unstack(difference, layout)))


def _matrices(memories: PyTree) -> list[Array]:
    """In the order of the norms of `hope_jax.kernels.self_mod.sweep`."""
    parts = [memories[name] for name in sorted(memories)]
    return [
        *(part["w_out"] for part in parts),
        *(part[name] for part in parts for name in ("w_in", "w_skip") if name in part),
    ]


def _norms(matrices: list[Array]) -> Array:
    """Frobenius norms [M] in JAX's default float, without gradient."""
    return jax.lax.stop_gradient(jnp.stack([trees.safe_norm(m.astype(float)) for m in matrices]))


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
