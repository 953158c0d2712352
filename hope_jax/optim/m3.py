"""M3, Multi-scale Momentum Muon: two momenta of different frequency, orthogonalised, over a second moment
(*Nested Learning*, Algorithm 1).

With gradients g_t, all sums and without bias correction:

    M1 += beta1 g;  V += beta2 g^2;  update = (NS(M1) + alpha O2) / (sqrt(V) + eps)
    after every f steps:  M2 += beta3 (sum of the last f gradients);  O2 = NS(M2), used from the next step on

NS is Newton-Schulz on matrices; vectors pass. NS forgets the gradient's scale and V does not: multiplying all
gradients by c divides the update by c, and V only grows, so the learning rate has the gradient's unit and
falls like 1 / sqrt(t) by itself.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from hope_jax.core import trees
from hope_jax.core.ranges import Count, NonNegative, Positive, Whole
from hope_jax.core.types import Array, PyTree
from hope_jax.kernels.newton_schulz import CUBIC, Spread, iterate_all, unit


@dataclass(frozen=True)
class M3Rule:
    """M3 (*Nested Learning*, Algorithm 1), under `optim.name=m3`. Its rate has the gradient's unit."""

    slow_chunk: Count = 5  # f: steps between writes of the slow momentum
    beta1: Positive = 0.9  # weight of a gradient in the fast momentum (a sum, no decay)
    beta2: Positive = 0.999  # weight of a squared gradient in the second moment (a sum, no decay)
    beta3: NonNegative = 0.9  # weight of f steps' gradients in the slow momentum; 0: no slow momentum
    alpha: NonNegative = 1.0  # weight of the slow momentum in the update
    ns_steps: Whole = 3  # T: Newton-Schulz iterations
    eps: Positive = 1e-8  # added to the root of the second moment, and to the norm before Newton-Schulz


class M3State(NamedTuple):
    """steps: int32 []. fast, slow: M1, M2. second_moment: V. gathered: gradients summed since the last
    write of M2. slow_direction: O2. All but steps: trees like the parameters."""

    steps: Array
    fast: PyTree
    slow: PyTree
    second_moment: PyTree
    gathered: PyTree
    slow_direction: PyTree


def scale_by_m3(rule: M3Rule, spread: Spread | None = None) -> optax.GradientTransformation:
    """Gradients to the descent direction (O1 + alpha O2) / (sqrt(V) + eps) of M3.

    Leaves of two and more axes are (stacks of) matrices. State in the parameters' dtypes: five times their
    size. Newton-Schulz is the cubic iteration X <- X (3 I - X^T X) / 2 from X / (|X|_F + eps); spread: over
    devices.
    """

    def orthogonal(tree: PyTree) -> PyTree:
        leaves, structure = jax.tree.flatten(tree)
        matrices = {i: unit(leaf, rule.eps) for i, leaf in enumerate(leaves) if leaf.ndim > 1}
        done = iterate_all(matrices, CUBIC, rule.ns_steps, spread)
        return jax.tree.unflatten(structure, [done.get(i, leaf) for i, leaf in enumerate(leaves)])

    def init(params: PyTree) -> M3State:
        return M3State(jnp.zeros((), jnp.int32), *[trees.zeros_like(params) for _ in range(5)])

    def write_slow(slow: PyTree, gathered: PyTree, _: PyTree) -> tuple[PyTree, PyTree, PyTree]:
        slow = jax.tree.map(lambda m, s: m + rule.beta3 * s, slow, gathered)
        return slow, trees.zeros_like(gathered), orthogonal(slow)

    def update(grads: PyTree, state: M3State, params: PyTree = None) -> tuple[PyTree, M3State]:
        fast = jax.tree.map(lambda m, g: m + rule.beta1 * g, state.fast, grads)
        second = jax.tree.map(lambda v, g: v + rule.beta2 * jnp.square(g), state.second_moment, grads)
        updates = jax.tree.map(
            lambda o1, o2, v: (o1 + rule.alpha * o2) / (jnp.sqrt(v) + rule.eps),
            orthogonal(fast),
            state.slow_direction,
            second,
        )
        steps = state.steps + 1
        slow, gathered, direction = jax.lax.cond(
            steps % rule.slow_chunk == 0,
            write_slow,
            lambda *unchanged: unchanged,
            *(state.slow, trees.add(state.gathered, grads), state.slow_direction),
        )
        return updates, M3State(steps, fast, slow, second, gathered, direction)

    return optax.GradientTransformation(init, update)
