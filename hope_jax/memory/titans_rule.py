"""The Titans paper's own write: momentum and decay with data-dependent gates (arXiv 2501.00663).

Token by token, g_t = grad l(M; k_t, v_t) at the weights that read the tokens,

    S_t = eta_t S_{t-1} - theta_t g_t,    M_t = (1 - alpha_t) M_{t-1} + S_t,

with alpha = sigmoid(k w_alpha + b_alpha), eta = sigmoid(k w_eta + b_eta), theta = lr softplus(k w_theta +
b_theta); a masked token is skipped. All of a period is one affine map of (M, S),

    M' = a M + b S - sum_t w_t g_t,    S' = e S - sum_t v_t g_t,

with scalars only from token to token; maps compose, so a period may span chunks. One example, one layer.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn.initializers import constant, zeros

from hope_jax.core import trees
from hope_jax.core.types import Array, PyTree
from hope_jax.memory import mlp_memory
from hope_jax.memory.initial import Entries
from hope_jax.memory.period_write import Ended, LevelState, LevelTokens, PeriodWriter

GATE_BIASES = {"alpha": -7.0, "eta": 2.2, "theta": 0.5413}
"""First biases of the gates: decay 0.0009, momentum 0.9, the level's own rate."""


TokenGates = tuple[Array, Array, Array]
"""[n] each: decay alpha, momentum eta, rate theta."""


class Period(NamedTuple):
    """What a period, or its part, does to (M, S), and what its gate is decided from.

    a, b, e: [] coefficients. grad_m, grad_s: the weighted sums of gradients.
    """

    a: Array
    b: Array
    e: Array
    grad_m: PyTree
    grad_s: PyTree
    ended: Ended


def token_gates(params: dict[str, Array], key_nd: Array, lr: float) -> TokenGates:
    """The gates of n tokens from their keys [n, D], in the parameters' dtype.

    params: `w_alpha`, `w_eta`, `w_theta` [D] and `b_alpha`, `b_eta`, `b_theta` [].
    """
    key = key_nd.astype(params["w_alpha"].dtype)

    def gate_of(name: str) -> Array:
        return key @ params[f"w_{name}"] + params[f"b_{name}"]

    decay, momentum = jax.nn.sigmoid(gate_of("alpha")), jax.nn.sigmoid(gate_of("eta"))
    return decay, momentum, lr * jax.nn.softplus(gate_of("theta"))


def token_weights(gates: TokenGates, mask: Array) -> tuple[Array, Array, Array, Array, Array]:
    """(a, b, e) [] of consecutive tokens, and the weights w, v [n] of their gradients. mask: bool [n]."""

    def back(carry: tuple[Array, Array, Array], xs: Any) -> tuple[Any, tuple[Array, Array]]:
        # The final (M, S) as functions of (M_t, S_t): M' = a M_t + b S_t - ..., S' = e S_t - ...
        a, b, e = carry
        (alpha, eta, theta), on = xs
        before = ((1 - alpha) * a, (a + b) * eta, e * eta)
        weights = jnp.where(on, (a + b) * theta, 0), jnp.where(on, e * theta, 0)
        return trees.select(on, before, carry), weights

    one = jnp.ones((), gates[0].dtype)
    (a, b, e), (w, v) = jax.lax.scan(back, (one, 0 * one, one), (gates, mask), reverse=True)
    return a, b, e, w, v


class TitansWriter(PeriodWriter):
    """The writes of one memory by this rule.

    Under a shared state every chunk's map is the mean of its examples' maps. The statistic `grad_norm` is
    of the gradients weighted by w_t, rates included.
    """

    def nothing(self, before: Any = ()) -> Period:
        """The map of no token: the identity."""
        zero, zeros = jnp.zeros((), self.dtype), trees.zeros_like(self.weights)
        return Period(zero + 1, zero, zero + 1, zeros, zeros, self.no_tokens())

    def init_opt(self) -> PyTree:
        """The momentum S, at zero."""
        return trees.zeros_like(self.weights)

    def join(self, first: Period, second: Period) -> Period:
        """The map that applies `first` and then `second`."""
        a, b, e, grad_m, grad_s, _ = second
        return Period(
            a=a * first.a,
            b=a * first.b + b * first.e,
            e=e * first.e,
            grad_m=jax.tree.map(lambda m, s, g: a * m + b * s + g, first.grad_m, first.grad_s, grad_m),
            grad_s=jax.tree.map(lambda s, g: e * s + g, first.grad_s, grad_s),
            ended=trees.add(first.ended, second.ended),
        )

    def gather(self, tokens: LevelTokens) -> Period:
        """The map of consecutive tokens."""
        dtype = self.dtype
        a, b, e, w, v = token_weights(tokens.gates, tokens.mask)

        def weighted(weights_n: Array) -> PyTree:
            column, factors = weights_n[:, None].astype(dtype), tokens.factors
            scaled = factors._replace(g_h=factors.g_h * column, g_o=factors.g_o * column)
            return mlp_memory.write_gradient(scaled, self.weights)

        total = self.reduce(Period(a, b, e, weighted(w), weighted(v), self.count(tokens)))
        examples = self.reduce(1)
        mean = jax.tree.map(lambda t: (t / examples).astype(dtype), total)
        return mean._replace(ended=self.shared(total.ended, len(tokens.mask)))

    def proposed(self, state: LevelState, period: Period) -> tuple[PyTree, PyTree, PyTree]:
        """The period's map of (M, S), M as the change from where it was."""
        write = jax.tree.map(
            lambda theta, d, s, g: (period.a - 1) * (theta + d) + period.b * s - g,
            self.weights,
            state.delta,
            state.opt,
            period.grad_m,
        )
        momentum = jax.tree.map(lambda s, g: period.e * s - g, state.opt, period.grad_s)
        return write, momentum, period.grad_m


def gate_entries(dim: int) -> Entries:
    """The parameters of the gates of keys [n, dim], which start without dependence on the data."""
    entries: dict[str, Any] = {}
    for name, start in GATE_BIASES.items():
        entries |= {f"w_{name}": (zeros, (dim,)), f"b_{name}": (constant(start), ())}
    return entries
