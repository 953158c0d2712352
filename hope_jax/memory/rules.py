"""Inner ("deep") optimizers: how a memory turns a write's gradient into an update, as one table.

Each is an `optax.GradientTransformationExtraArgs` over a level's fast weights (flax layout: matrices
[in, out]); `update(grads, state, context=c)` takes the period's mean input c [D]. The caller applies -lr u.
Where `InnerRule.averages` says so it ends in the exponential average v <- beta v + (1 - beta) u without bias
correction. Everything can be differentiated, at zero gradients and states too.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from hope_jax.core import trees
from hope_jax.core.types import Array, PyTree
from hope_jax.kernels.cms_write import root
from hope_jax.memory.levels import Level
from hope_jax.memory.mlp_memory import WriteFactors

CONTEXT_AXES: Mapping[str, int] = {"w_up": 0}
"""Leaves that `nl_l2_precond` projects, and the axis that lies in the context's space."""

L2_OBJECTIVE_WEIGHT = 0.1


class InnerRule(NamedTuple):
    """One inner optimizer, as the rest of the memory floor sees it.

    transform: (level, context axes) -> what is done to the gradient before the average. averages: the average
    follows, if beta > 0. linear: the update is a fixed linear function of the gradients and of the period's
    context, so that many periods advance as coefficients; rows: what it then makes of the tokens' inputs,
    (level, weight, rows [P, C, I], tokens seen [P], their products with delta [P, C, O] or None) -> the
    same of the new rows.
    at_outputs: (factors, lr, mask [n], biases) -> factors whose plain gradient steps are the rule's: it asks
    for each token's inputs and outputs. gated: tokens have rates of their own (`titans_rule`).
    """

    transform: Callable[[Level, Mapping[str, int]], list[optax.GradientTransformation]] = lambda *_: []
    averages: bool = True
    linear: bool = False
    rows: Callable[[Level, str, Array, Array, Array | None], tuple[Array, Array | None]] = (
        lambda _spec, _name, rows, _seen, on_delta: (rows, on_delta)
    )
    at_outputs: Callable[[WriteFactors, float, Array, bool], WriteFactors] | None = None
    gated: bool = False


def scale_by_second_moment(level: Level) -> optax.GradientTransformation:
    """g / (sqrt(s) + eps) with s <- beta2 s + (1 - beta2) g^2, s from zero, no bias correction.

    `optax.scale_by_rms` with eps outside the root, but for its slope at s = 0: there g = 0, and the update
    is g / eps to first order.
    """

    def update(
        updates: PyTree, state: optax.ScaleByRmsState, params: PyTree = None
    ) -> tuple[PyTree, optax.ScaleByRmsState]:
        nu = jax.tree.map(lambda g, s: level.beta2 * s + (1 - level.beta2) * jnp.square(g), updates, state.nu)
        return jax.tree.map(lambda g, s: g / (root(s) + level.eps), updates, nu), optax.ScaleByRmsState(nu)

    return optax.GradientTransformation(
        lambda params: optax.ScaleByRmsState(trees.zeros_like(params)), update
    )


def project_out_context(
    eps: float, context_axes: Mapping[str, int] = CONTEXT_AXES
) -> optax.GradientTransformationExtraArgs:
    """g - (g . e) e along the named axis of each named leaf, e = c / (|c| + eps); g where c = 0."""

    def project(g: Array, axis: int, context: Array) -> Array:
        norm = trees.safe_norm(context)
        unit = (context / jnp.where(norm > 0, norm + eps, 1)).astype(g.dtype)
        # A product with the matrix: as a sum of products XLA:CPU takes 30 times as long.
        along = jnp.expand_dims(jnp.tensordot(unit, g, (0, axis)), axis)
        shape = [-1 if i == axis else 1 for i in range(g.ndim)]
        return jnp.where(norm > 0, g - along * unit.reshape(shape), g)

    def update(
        grads: PyTree, state: PyTree, params: PyTree = None, *, context: Array | None = None
    ) -> tuple[PyTree, PyTree]:
        if context is None:
            raise ValueError("context: nl_l2_precond needs the period's mean input; got None")
        axes = context_axes.items()
        return {**grads, **{k: project(grads[k], axis, context) for k, axis in axes if k in grads}}, state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def delta_momentum(alpha: float) -> optax.GradientTransformationExtraArgs:
    """Momentum that forgets along the gradient of the moment (Eqs. 48-49 with P = I); the update is n.

    For weights [out, in] and g = grad L they are m <- m (alpha I - g^T g) - eta g, W <- W + m; with G = g^T
    [in, out] and m^T = -eta n that is n <- alpha n - G G^T n + G, W <- W - eta n. A bias [out] is a map from
    a constant input 1, so G G^T is |G|^2. The scale of the loss matters beside eta: where G stays, n has the
    factor alpha - |G|^2 along it, and grows without bound if the spectral norm has |G|^2 > 1 + alpha. A bound
    on the writes then bounds the weights, but not n: the loss (the teach signal) has to be scaled down.
    """

    def step(n: Array, gradient: Array) -> Array:
        g, old = jnp.atleast_2d(gradient), jnp.atleast_2d(n)
        along = (g @ g.mT) @ old if g.shape[-2] <= g.shape[-1] else g @ (g.mT @ old)
        return alpha * n - along.reshape(n.shape) + gradient

    def update(
        updates: PyTree, state: optax.TraceState, params: PyTree = None, **extra: object
    ) -> tuple[PyTree, optax.TraceState]:
        momentum = jax.tree.map(step, state.trace, updates)
        return momentum, optax.TraceState(momentum)

    return optax.GradientTransformationExtraArgs(
        lambda params: optax.TraceState(trees.zeros_like(params)), update
    )


def delta_gradient_descent(plain: WriteFactors, lr: float, mask: Array, biases: bool) -> WriteFactors:
    """Factors whose plain gradient steps of rate lr are those of delta gradient descent (Eqs. 56-57,
    113-121): a write that also forgets along its own inputs.

    For one token of y = W x (+ b), with g the gradient of the loss at y, the new weights are

        argmin_V  1/2 |V x + g|^2 + 1/(2 eta) |V - W|_F^2 = W - eta' (g + W x) x^T

    with eta' = eta / (1 + eta |x|^2) (Sherman-Morrison), so their own output is drawn to -g: plain gradient
    descent of rate eta on another gradient at y, (g + W x) / (1 + eta |x|^2). A bias is the column of W that
    meets a constant input 1. One token's step is stable at every eta; the sum over a period overshoots where
    the tokens' inputs agree: eta' |x|^2 summed over a direction should stay below 2.

    plain: of the loss's gradient, n tokens. mask: bool [n]; a token that is False there writes nothing and
    forgets nothing. biases: the maps have them.
    """
    assert plain.h is not None and plain.o is not None

    def at_output(x: Array, y: Array, g: Array) -> Array:
        wide = jnp.promote_types(x.dtype, jnp.float32)
        size = jnp.square(x.astype(wide)).sum(-1, keepdims=True) + biases
        drawn = (g.astype(wide) + y.astype(wide)) / (1 + lr * size)
        return jnp.where(mask[:, None], drawn, 0).astype(g.dtype)

    return plain._replace(
        g_h=at_output(plain.z, plain.h, plain.g_h), g_o=at_output(plain.a, plain.o, plain.g_o)
    )


def project_tokens(
    spec: Level, name: str, z_pcd: Array, seen_p: Array, on_delta: Array | None
) -> tuple[Array, Array | None]:
    """`project_out_context` on the factors of W_up's gradient: tokens [P, C, D] without their component along
    the mean of the `seen` ones of their period, and their products with delta [P, C, H], if given."""
    if name not in CONTEXT_AXES or spec.update_period == 1:
        return z_pcd, on_delta
    count = jnp.maximum(seen_p, 1)[:, None, None]
    context = z_pcd.sum(1, keepdims=True) / count
    norm = root(jnp.square(context).sum(-1, keepdims=True))
    along = (z_pcd * (context / (norm + spec.eps))).sum(-1, keepdims=True)

    def projected(t: Array) -> Array:
        return jnp.where(norm > 0, t - along * (t.sum(1, keepdims=True) / count / (norm + spec.eps)), t)

    return projected(z_pcd), None if on_delta is None else projected(on_delta.astype(z_pcd.dtype))


_TANH = optax.stateless_with_tree_map(lambda g, _: jnp.tanh(g))
_MEAN = optax.stateless_with_tree_map(lambda g, _: g + L2_OBJECTIVE_WEIGHT * g.mean(0, keepdims=True))
"""g + weight * mean of g over the input axis."""


def _rows_with_mean(
    _spec: Level, _name: str, rows: Array, _seen: Array, _on_delta: Array | None
) -> tuple[Array, None]:
    """Applies `_MEAN` to each row's outer product, whose first axis is that of the row."""
    return rows + L2_OBJECTIVE_WEIGHT * rows.mean(-1, keepdims=True), None


def _projection(spec: Level, axes: Mapping[str, int]) -> list[optax.GradientTransformation]:
    # A period of one token has a gradient along its own input only: projecting would erase the write.
    return [project_out_context(spec.eps, axes)] if spec.update_period > 1 else []


RULES: Mapping[str, InnerRule] = {
    "sgd": InnerRule(averages=False, linear=True),
    "momentum": InnerRule(linear=True),
    "preconditioned": InnerRule(lambda spec, _: [scale_by_second_moment(spec)]),
    "muon": InnerRule(lambda spec, _: [scale_by_second_moment(spec), _TANH]),
    "l2_objective": InnerRule(lambda *_: [_MEAN], linear=True, rows=_rows_with_mean),
    "dmgd": InnerRule(lambda *_: [_TANH]),
    "nl_l2_precond": InnerRule(_projection, linear=True, rows=project_tokens),
    "delta_momentum": InnerRule(lambda spec, _: [delta_momentum(spec.beta)], averages=False),
    "dgd": InnerRule(averages=False, linear=True, at_outputs=delta_gradient_descent),
    "titans": InnerRule(gated=True),
}

OPTIMIZERS = tuple(name for name, rule in RULES.items() if not rule.gated)
"""The inner optimizers that every level may have; a gated one is the TITAN memory's alone."""


def make_inner_optimizer(
    spec: Level, context_axes: Mapping[str, int] = CONTEXT_AXES
) -> optax.GradientTransformationExtraArgs:
    """The inner optimizer that a level names.

    Raises:
      ValueError: `spec.optimizer` is not in `OPTIMIZERS`.
    """
    if spec.optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer: want one of {', '.join(OPTIMIZERS)}; got {spec.optimizer!r}")
    rule = RULES[spec.optimizer]
    parts = [optax.identity(), *rule.transform(spec, context_axes)]
    if rule.averages and spec.beta > 0:
        parts.append(optax.ema(spec.beta, debias=False))
    return optax.with_extra_args_support(optax.chain(*parts))


def velocity(state: PyTree) -> PyTree | None:
    """The average v of an inner optimizer's state, by weight; None if it keeps none."""
    last = state[-1]
    return last.ema if isinstance(last, optax.EmaState) else None


def with_velocity(state: PyTree, ema: PyTree, steps: Array) -> PyTree:
    """The state with another average, `steps` steps later."""
    return (*state[:-1], optax.EmaState(count=state[-1].count + steps.astype(jnp.int32), ema=ema))
