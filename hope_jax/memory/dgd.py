"""Delta gradient descent (Eqs. 56-57, 113-121): a write that also forgets along its own inputs.

For one token of a linear map y = W x (+ b), with g the gradient of the loss at y, the new weights are

    argmin_V  1/2 |V x + g|^2 + 1/(2 eta) |V - W|_F^2,

so their own output is drawn to -g, where plain gradient descent only moves it along -g. Its condition is
V (I + eta x x^T) = W - eta g x^T; by Sherman-Morrison (I + eta x x^T)^-1 = I - eta' x x^T, and

    V = W (I - eta' x x^T) - eta' g x^T = W - eta' (g + W x) x^T,   eta' = eta / (1 + eta |x|^2),

Eq. 57 for inputs of any norm. So it is plain gradient descent of rate eta on another gradient at y,

    g <- (g + W x) / (1 + eta |x|^2),

which is all that this module computes: the tokens of a period then add up like any others. A bias is the
column of W that meets a constant input 1: W x + b takes the place of W x, and |x|^2 + 1 that of |x|^2.

One token's step is stable at every eta. The sum over a period is taken at the weights that read it, and it
overshoots where the tokens' inputs agree: eta' |x|^2 summed over a direction should stay below 2.
"""

import jax.numpy as jnp

from hope_jax.memory.mlp_memory import WriteFactors
from hope_jax.types import Array


def factors(plain: WriteFactors, lr: float, mask: Array, *, biases: bool) -> WriteFactors:
    """The factors whose plain gradient steps of rate lr are those of delta gradient descent.

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
