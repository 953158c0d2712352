"""Inner ("deep") optimizers: how a memory turns a write's gradient into an update (SPEC §2.5).

Each is an `optax.GradientTransformationExtraArgs` over a level's fast weights (flax layout: matrices
[in, out]); `update(grads, state, context=c)` takes the period's mean input c [D]. The caller applies -lr u.
All but `sgd`, `dgd` and `delta_momentum` end in the exponential average v <- beta v + (1 - beta) u without
bias correction. `dgd` needs the inputs of each token: `hope_jax.memory.dgd` has put its rule into the
gradient before it arrives here, where it is `sgd`.

Everything can be differentiated, at zero gradients and states too.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from hope_jax import trees
from hope_jax.kernels.cms_write import root
from hope_jax.memory.levels import LevelSpec
from hope_jax.types import Array, PyTree

CONTEXT_AXES: Mapping[str, int] = {"w_up": 0}
"""Leaves that `nl_l2_precond` projects, and the axis that lies in the context's space."""

L2_OBJECTIVE_WEIGHT = 0.1


def _stateless(
    function: Callable[[PyTree, Array | None], PyTree],
) -> optax.GradientTransformationExtraArgs:
    def update(
        updates: PyTree, state: PyTree, params: PyTree = None, *, context: Array | None = None
    ) -> tuple[PyTree, PyTree]:
        del params
        return function(updates, context), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def scale_by_second_moment(beta2: float, eps: float) -> optax.GradientTransformation:
    """g / (sqrt(s) + eps) with s <- beta2 s + (1 - beta2) g^2, s from zero, no bias correction.

    `optax.scale_by_rms` with eps outside the root, but for its slope at s = 0: there g = 0, and the update
    is g / eps to first order.
    """

    def update(
        updates: PyTree, state: optax.ScaleByRmsState, params: PyTree = None
    ) -> tuple[PyTree, optax.ScaleByRmsState]:
        del params
        nu = jax.tree.map(lambda g, s: beta2 * s + (1 - beta2) * jnp.square(g), updates, state.nu)
        return jax.tree.map(lambda g, s: g / (root(s) + eps), updates, nu), optax.ScaleByRmsState(nu)

    return optax.GradientTransformation(
        lambda params: optax.ScaleByRmsState(trees.zeros_like(params)), update
    )


def tanh() -> optax.GradientTransformationExtraArgs:
    """Elementwise tanh (the reference's `dmgd`, and the last step of its `muon`)."""
    return _stateless(lambda grads, _: jax.tree.map(jnp.tanh, grads))


def add_row_mean(weight: float) -> optax.GradientTransformationExtraArgs:
    """g + weight * mean of g over the input axis (the reference's `l2_objective`)."""
    return _stateless(lambda grads, _: jax.tree.map(lambda g: g + weight * g.mean(0, keepdims=True), grads))


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

    def function(grads: PyTree, context: Array | None) -> PyTree:
        if context is None:
            raise ValueError("context: nl_l2_precond needs the period's mean input; got None")
        return {
            name: project(g, context_axes[name], context) if name in context_axes else g
            for name, g in grads.items()
        }

    return _stateless(function)


class DeltaMomentumState(NamedTuple):
    """momentum: n, a tree like the weights."""

    momentum: PyTree


def delta_momentum(alpha: float) -> optax.GradientTransformationExtraArgs:
    """Momentum that forgets along the gradient of the moment (Eqs. 48-49 with P = I); the update is n.

    For weights [out, in] and g = grad L the equations are m <- m (alpha I - g^T g) - eta g, W <- W + m.
    With G = g^T [in, out] and m^T = -eta n this is

        n <- alpha n - G G^T n + G,   W <- W - eta n.

    A bias [out] is a map from a constant input 1, so G G^T is |G|^2. The equation is not homogeneous: the
    scale of the loss matters beside eta. Where G stays, n has the factor alpha - |G|^2 along it, so n grows
    without bound if the spectral norm has |G|^2 > 1 + alpha. A bound on the writes then bounds the weights,
    but not n, which overflows in the end: the loss (the teach signal) has to be scaled down.
    """

    def step(n: Array, gradient: Array) -> Array:
        g, old = jnp.atleast_2d(gradient), jnp.atleast_2d(n)
        along = (g @ g.mT) @ old if g.shape[-2] <= g.shape[-1] else g @ (g.mT @ old)
        return alpha * n - along.reshape(n.shape) + gradient

    def update(
        updates: PyTree, state: DeltaMomentumState, params: PyTree = None, **extra: object
    ) -> tuple[PyTree, DeltaMomentumState]:
        del params, extra
        momentum = jax.tree.map(step, state.momentum, updates)
        return momentum, DeltaMomentumState(momentum)

    return optax.GradientTransformationExtraArgs(
        lambda params: DeltaMomentumState(trees.zeros_like(params)), update
    )


def _rule(spec: LevelSpec, context_axes: Mapping[str, int]) -> list[optax.GradientTransformation]:
    if spec.optimizer == "preconditioned":
        return [scale_by_second_moment(spec.beta2, spec.eps)]
    if spec.optimizer == "muon":
        return [scale_by_second_moment(spec.beta2, spec.eps), tanh()]
    if spec.optimizer == "dmgd":
        return [tanh()]
    if spec.optimizer == "l2_objective":
        return [add_row_mean(L2_OBJECTIVE_WEIGHT)]
    if spec.optimizer == "nl_l2_precond":
        # A period of one token has a gradient along its own input only: projecting would erase the write.
        return [project_out_context(spec.eps, context_axes)] if projects(spec) else []
    if spec.optimizer == "delta_momentum":
        return [delta_momentum(spec.beta)]
    return []


VARIANTS = (
    "sgd",
    "momentum",
    "preconditioned",
    "muon",
    "l2_objective",
    "dmgd",
    "nl_l2_precond",
    "delta_momentum",
    "dgd",
)

_WITHOUT_AVERAGE = ("sgd", "dgd", "delta_momentum")


def make_inner_optimizer(
    spec: LevelSpec, context_axes: Mapping[str, int] = CONTEXT_AXES
) -> optax.GradientTransformationExtraArgs:
    """The inner optimizer that a level names.

    Raises:
      ValueError: `spec.optimizer` is not in `VARIANTS`.
    """
    if spec.optimizer not in VARIANTS:
        raise ValueError(f"{spec.name}.optimizer: want one of {', '.join(VARIANTS)}; got {spec.optimizer!r}")
    parts = [optax.identity(), *_rule(spec, context_axes)]
    if spec.optimizer not in _WITHOUT_AVERAGE and spec.beta > 0:
        parts.append(optax.ema(spec.beta, debias=False))
    return optax.with_extra_args_support(optax.chain(*parts))


def is_linear(spec: LevelSpec) -> bool:
    """True if the update is a fixed linear function of the gradients (and of the period's context).

    For `dgd` of the gradients that `hope_jax.memory.dgd` has made.
    """
    return spec.optimizer in ("sgd", "momentum", "l2_objective", "nl_l2_precond", "dgd")


def projects(spec: LevelSpec) -> bool:
    """True if W_up's gradient loses its component along the period's context."""
    return spec.optimizer == "nl_l2_precond" and spec.update_period > 1


def velocity(state: PyTree) -> PyTree | None:
    """The average v of an inner optimizer's state, by weight; None if it keeps none."""
    last = state[-1]
    return last.ema if isinstance(last, optax.EmaState) else None


def with_velocity(state: PyTree, ema: PyTree, steps: Array) -> PyTree:
    """The state with another average, `steps` steps later."""
    return (*state[:-1], optax.EmaState(count=state[-1].count + steps.astype(jnp.int32), ema=ema))
