"""M3, Multi-scale Momentum Muon: two momenta of different frequency, orthogonalised, over a second moment
(*Nested Learning*, Algorithm 1).

With gradients g_t, all sums and without bias correction:

    M1 += beta1 g;  V += beta2 g^2;  update = (NS(M1) + alpha O2) / (sqrt(V) + eps)
    after every f steps:  M2 += beta3 (sum of the last f gradients);  O2 = NS(M2), used from the next step on

NS is Newton-Schulz on matrices; vectors pass. NS forgets the gradient's scale and V does not: multiplying all
gradients by c divides the update by c, and V only grows, so the learning rate has the gradient's unit and
falls like 1 / sqrt(t) by itself.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from hope_jax.core import trees
from hope_jax.core.types import Array, PyTree
from hope_jax.kernels.newton_schulz import CUBIC, orthogonalize


class M3Rule(NamedTuple):
    """Constants of Algorithm 1.

    slow_chunk: steps between writes of the slow momentum (f). beta1, beta2, beta3: weights of the fast
    momentum's, the second moment's and the slow momentum's new terms. alpha: weight of the slow momentum in
    the update. ns_steps: Newton-Schulz iterations (T). eps: added to the root of V, and to NS's divisor.
    """

    slow_chunk: int = 5
    beta1: float = 0.9
    beta2: float = 0.999
    beta3: float = 0.9
    alpha: float = 1.0
    ns_steps: int = 3
    eps: float = 1e-8


class M3State(NamedTuple):
    """steps: int32 []. fast, slow: M1, M2. second_moment: V. gathered: gradients summed since the last
    write of M2. slow_direction: O2. All but steps: trees like the parameters."""

    steps: Array
    fast: PyTree
    slow: PyTree
    second_moment: PyTree
    gathered: PyTree
    slow_direction: PyTree


def newton_schulz(x: Array, steps: int, eps: float) -> Array:
    """The cubic iteration X <- X (3 I - X^T X) / 2 from X = x / (|x|_F + eps), of each of the matrices
    [..., rows, columns], towards the nearest semi-orthogonal one; x itself if it has fewer than two axes."""
    return x if x.ndim < 2 else orthogonalize(x, CUBIC, steps, eps)


def scale_by_m3(rule: M3Rule) -> optax.GradientTransformation:
    """Gradients to the descent direction (O1 + alpha O2) / (sqrt(V) + eps) of M3.

    Leaves of two and more axes are (stacks of) matrices. State in the parameters' dtypes: five times their
    size.

    Raises:
      ValueError: slow_chunk is below 1, or ns_steps below 0.
    """
    if rule.slow_chunk < 1 or rule.ns_steps < 0:
        raise ValueError(
            f"optim.m3: slow_chunk={rule.slow_chunk} must be at least 1, ns_steps={rule.ns_steps} at least 0"
        )

    def orthogonal(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda m: newton_schulz(m, rule.ns_steps, rule.eps), tree)

    def init(params: PyTree) -> M3State:
        return M3State(jnp.zeros((), jnp.int32), *[trees.zeros_like(params) for _ in range(5)])

    def write_slow(slow: PyTree, gathered: PyTree, _: PyTree) -> tuple[PyTree, PyTree, PyTree]:
        slow = jax.tree.map(lambda m, s: m + rule.beta3 * s, slow, gathered)
        return slow, trees.zeros_like(gathered), orthogonal(slow)

    def update(grads: PyTree, state: M3State, params: PyTree = None) -> tuple[PyTree, M3State]:
        del params
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
