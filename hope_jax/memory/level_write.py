"""The writes of one level by an inner optimizer, for any memory that teach signals drive (SPEC §2.1, §2.5).

A memory gives the factors of its gradient, token by token; here they are summed over a period and passed once
through the level's inner optimizer. One example and one layer; rows are tokens.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hope_jax import trees
from hope_jax.kernels.cms_write import root, write_periods
from hope_jax.memory import dgd, gate, levels, mlp_memory
from hope_jax.memory.inner_optim import (
    is_linear,
    make_inner_optimizer,
    projects,
    velocity,
    with_velocity,
)
from hope_jax.memory.levels import LevelSpec
from hope_jax.memory.mlp_memory import WriteFactors
from hope_jax.memory.period_write import (
    Ended,
    LevelState,
    PeriodWriter,
    WriteRules,
    count,
    no_tokens,
    write_stats,
)
from hope_jax.memory.state import Reduce, WriteSignal, WriteStats, own
from hope_jax.types import Array, PyTree


class Pending(NamedTuple):
    """What the unfinished period of a level has gathered, of all examples that share the fast state.

    grad: summed gradient of the fast weights. context: [D] sum of LN(x).
    """

    grad: PyTree
    context: Array
    ended: Ended


def init_level(spec: LevelSpec, params: PyTree, chunk_size: int) -> LevelState:
    """The state of a level that has written nothing. params: that level's, of one layer."""
    weights = mlp_memory.fast_weights(params)
    pending: Pending | tuple[()] = ()
    if levels.spans_chunks(spec.update_period, chunk_size):
        pending = nothing(weights)
    return LevelState(
        delta=trees.zeros_like(weights), opt=make_inner_optimizer(spec).init(weights), pending=pending
    )


def nothing(weights: mlp_memory.Weights) -> Pending:
    """What no token has gathered."""
    w_up = weights["w_up"]
    context = jnp.zeros(w_up.shape[0], w_up.dtype)
    return Pending(trees.zeros_like(weights), context, no_tokens(w_up.dtype))


class Tokens(NamedTuple):
    """Consecutive tokens of a level, leaves [n, ...]; see `LevelWriter.write`."""

    factors: WriteFactors
    mask: Array
    surprise_n: Array
    counted_n: Array


class LevelWriter(PeriodWriter[Pending]):
    """The writes of one level with its inner optimizer: theta_l <- theta_l - eta_l u."""

    def __init__(self, rules: WriteRules, spec: LevelSpec, params: PyTree, reduce: Reduce) -> None:
        super().__init__(rules, spec, params, reduce)
        self.optimizer = make_inner_optimizer(spec)

    def write(
        self,
        state: LevelState,
        factors: WriteFactors,
        mask: Array,
        signal: WriteSignal,
        position: Array,
        last: bool,
    ) -> tuple[LevelState, WriteStats]:
        """Writes one chunk of n tokens, whose first stands at `position`.

        factors: of the gradient at the weights that read the chunk, zero where mask (bool [n]) is False.
        last: the stream ends here.
        """
        if self.spec.optimizer == "dgd":
            factors = dgd.factors(factors, self.spec.lr, mask, biases="b_up" in self.weights)
        return self.write_chunk(
            state, Tokens(factors, mask, signal.surprise_n, signal.counted_n), position, last
        )

    def nothing(self) -> Pending:
        """See `PeriodWriter`."""
        return nothing(self.weights)

    def join(self, first: Pending, second: Pending) -> Pending:
        """Sums."""
        return trees.add(first, second)

    def gather(self, tokens: Tokens) -> Pending:
        """The sums of a period's (or its part's) gradient, and its counts."""
        dtype = self.norms[0].dtype
        return self.reduce(
            Pending(
                grad=mlp_memory.write_gradient(tokens.factors, self.weights),
                context=tokens.factors.z.astype(dtype).sum(0),
                ended=count(tokens.mask, tokens.surprise_n, tokens.counted_n, dtype),
            )
        )

    def proposed(self, state: LevelState, period: Pending) -> tuple[PyTree, PyTree, PyTree]:
        """A step of the inner optimizer."""
        context = period.context / jnp.maximum(period.ended.seen, 1)
        update, opt = self.optimizer.update(period.grad, state.opt, context=context)
        return jax.tree.map(lambda u: -self.spec.lr * u, update), opt, period.grad

    def write_periods(self, state: LevelState, by_period: Tokens) -> tuple[LevelState, WriteStats]:
        """One step per period: all at once where they are linear, else one after the other."""
        if by_period.mask.shape[0] > 1 and self._in_closed_form():
            return self._write_linear(state, *by_period)
        return super().write_periods(state, by_period)

    def _in_closed_form(self) -> bool:
        """Whether a chunk's periods can advance as coefficients: a linear optimizer, matrices without
        biases, and one example a state."""
        return is_linear(self.spec) and len(self.weights) == 2 and self.reduce is own

    def _write_linear(
        self, state: LevelState, factors: WriteFactors, mask: Array, surprise_n: Array, counted_n: Array
    ) -> tuple[LevelState, WriteStats]:
        """All whole periods of a chunk at once (`hope_jax.kernels.cms_write`); inputs [P, C, ...]."""
        dtype, spec, bounds = self.norms[0].dtype, self.spec, self.rules.bounds
        surprise = gate.measure(surprise_n.astype(dtype), counted_n)
        tokens = mask.sum(1).astype(jnp.float32)
        is_open = jax.vmap(lambda s: gate.is_open(self.rules.gate_rule, s))(surprise)
        applied = is_open & (tokens > 0)
        z = factors.z.astype(dtype)
        inputs = {"w_up": project_tokens(z, spec.eps) if projects(spec) else z, "w_down": factors.a}
        outputs = {"w_up": factors.g_h, "w_down": factors.g_o}
        before = velocity(state.opt)
        written = {
            name: write_periods(
                inputs[name].reshape(-1, inputs[name].shape[-1]),
                outputs[name].reshape(-1, outputs[name].shape[-1]),
                state.delta[name],
                None if before is None else before[name],
                applied,
                beta=spec.beta,
                lr=spec.lr,
                max_write=_limit(bounds.write, norm),
                max_delta=_limit(bounds.delta, norm),
            )
            for name, norm in zip(("w_up", "w_down"), self.norms, strict=True)
        }
        norms = [_period_norms(factors.z, factors.g_h, dtype), _period_norms(factors.a, factors.g_o, dtype)]
        hits = [w.write_hits for w in written.values()], [w.delta_hits for w in written.values()]
        stats = write_stats(is_open, applied, tokens, gate.mean_surprise(surprise), norms, *hits)
        opt = state.opt
        if before is not None:
            ema = {name: w.velocity for name, w in written.items()}
            opt = with_velocity(opt, ema, applied.sum())
        return state._replace(delta={name: w.delta for name, w in written.items()}, opt=opt), stats


def project_tokens(z_pcd: Array, eps: float) -> Array:
    """Tokens [P, C, D] without their component along their period's mean: the projection of
    `inner_optim.project_out_context`, applied to the factors of the gradient."""
    context = z_pcd.mean(1, keepdims=True)
    norm = root(jnp.square(context).sum(-1, keepdims=True))
    unit = context / (norm + eps)
    return jnp.where(norm > 0, z_pcd - (z_pcd * unit).sum(-1, keepdims=True) * unit, z_pcd)


def _period_norms(x_pci: Array, g_pco: Array, dtype: jnp.dtype) -> Array:
    """Frobenius norm [P] of each period's gradient sum_t x_t g_t^T, from its tokens' inner products."""
    x, g = x_pci.astype(dtype), g_pco.astype(dtype)
    square = jnp.einsum("pci,pdi->pcd", x, x) * jnp.einsum("pco,pdo->pcd", g, g)
    return root(square.sum((1, 2)))


def _limit(bound: float, norm: Array) -> Array | None:
    return bound * norm if bound else None
