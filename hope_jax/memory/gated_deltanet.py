"""Gated DeltaNet (arXiv 2412.06464): a state that the gated delta rule writes and reads at every token.

Per head, alpha_t = exp(-exp(a_log) softplus(x w_alpha + dt_bias)) and beta_t = sigmoid(x w_beta); q, k, v are
SiLU(convolution of x W_q, x W_k, x W_v), q and k of unit norm, q times K^-1/2. The state S [K, V] becomes
alpha_t (I - beta_t k_t k_t^T) S + beta_t k_t v_t^T and is then read, o_t = S^T q_t; the layer's output is
W_out (RMSNorm(o) * SiLU(x W_gate)). Everything is for one example and one layer; rows are tokens.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.nn.initializers import ones

from hope_jax.core.types import Array, PyTree
from hope_jax.kernels.causal_conv import causal_conv
from hope_jax.kernels.gated_deltanet import gated_delta
from hope_jax.memory import flops
from hope_jax.memory.flops import Flops
from hope_jax.memory.initial import ArrayKinds, Entries, Initial, bias
from hope_jax.memory.norms import rms_norm, unit_norm
from hope_jax.memory.state import Reduce, WriteStats, own, zero_stats

LEVEL = "state"


@dataclass(frozen=True)
class GatedDeltaNet:
    """The constants of Gated DeltaNet: a `StreamMemory` of `hope_jax.memory.state`.

    dim: D. heads: H, a divisor of D; K = V = D / H. conv_window: w >= 1, taps of the convolution. chunk:
    tokens that the kernel joins, which changes results by rounding only. eps: least norm of q and k that is
    divided by, and what RMSNorm adds to the mean square.

    Its state is S [H, K, V] in at least float32, its carry the last inputs [w - 1, 3 D] of the convolution.
    """

    dim: int
    heads: int
    conv_window: int = 4
    chunk: int = 64
    eps: float = 1e-6

    def entries(self, begin: Initial) -> Entries:
        """See `AnyMemory.entries`. exp(a_log) and softplus(dt_bias) start as in the paper's code."""
        dim, heads, window = self.dim, self.heads, self.conv_window
        return {
            **dict.fromkeys(("w_q", "w_k", "w_v", "w_gate"), (begin.matrix(), (dim, dim))),
            **dict.fromkeys(("w_alpha", "w_beta"), (begin.matrix(), (dim, heads))),
            "w_out": (begin.matrix(residual=True), (dim, dim)),
            "conv": (bias(window), (window, 3 * dim)),
            "a_log": (_a_log, (heads,)),
            "dt_bias": (_dt_bias, (heads,)),
            "norm_scale": (ones, (dim // heads,)),
        }

    def periods(self) -> dict[str, int]:
        """See `AnyMemory.periods`: every token is a write."""
        return {LEVEL: 1}

    def flops(self, tokens: int) -> list[Flops]:
        """See `AnyMemory.flops`: five projections, two logits a head, three products with the state."""
        projections = 10.0 * self.dim * self.dim + 4.0 * self.dim * self.heads
        return [flops.matrices(projections + 6.0 * self.dim * (self.dim // self.heads))]

    def without_gradient(self, tokens: int) -> tuple[str, ...]:
        """None; but in a context of one token the gates of the decay have none, as nothing can decay."""
        return ("w_alpha", "a_log", "dt_bias") if tokens < 2 else ()

    def init(self, params: PyTree) -> Array:
        """The state of a context that has written nothing: zeros, for parameters of one layer."""
        size = self.dim // self.heads
        return jnp.zeros((self.heads, size, size), jnp.promote_types(params["w_k"].dtype, jnp.float32))

    def init_carry(self, dtype: jnp.dtype) -> Array:
        """The carry before the first token; dtype: that of the inputs."""
        return jnp.zeros((self.conv_window - 1, 3 * self.dim), dtype)

    def move(self, old: PyTree, new: PyTree, fast: Array) -> Array:
        """The same state, as it is not kept relative to any parameters."""
        return fast

    def read(
        self,
        params: PyTree,
        fast: Array | None,
        carry: Array | None,
        x_nd: Array,
        position: Array | int,
        active_n: Array | None = None,
        segments: Array | None = None,
        *,
        reduce: Reduce = own,
    ) -> tuple[Array, Array | None, Array | None, dict[str, WriteStats]]:
        """Reads n tokens, any number, each after its own write; see `StreamMemory.read`.

        `position` has no effect. A shared state becomes a mean at the end of the call. Padding has beta 0 and
        alpha 1. The state goes on through documents. Statistics: each active token is a period that was
        written. The sizes of writes are left at 0, as the kernel never forms a write, and so is `delta_norm`:
        the state has no slow weights.
        """
        active = jnp.ones(len(x_nd), bool) if active_n is None else active_n
        tokens, history = self._tokens(params, x_nd, carry, segments, active)
        o_nhv, state = gated_delta(*tokens, self.init(params) if fast is None else fast, self.chunk)
        if fast is not None and reduce is not own:
            state = reduce(state) / reduce(1)
        counted = ("periods", "chunk_tokens", "gate_hit", "updates_applied")
        return (
            self._output(params, x_nd, o_nhv),
            None if fast is None else state.astype(fast.dtype),
            None if carry is None else history.astype(carry.dtype),
            {LEVEL: zero_stats()._replace(**dict.fromkeys(counted, active.sum().astype(float)))},
        )

    def _tokens(
        self, params: PyTree, x_nd: Array, carry: Array | None, segments: Array | None, active_n: Array
    ) -> tuple[tuple[Array, ...], Array]:
        """q, k, v [n, H, K], log alpha and beta [n, H] in at least float32; the convolution's history."""
        inputs = jnp.concatenate([_times(x_nd, params[name]) for name in ("w_q", "w_k", "w_v")], 1)
        mixed, history = causal_conv(inputs, params["conv"], carry, segments)
        streams = jax.nn.silu(mixed).reshape(len(x_nd), 3, self.heads, self.dim // self.heads)
        q, k, v = streams[:, 0], streams[:, 1], streams[:, 2]
        wide = jnp.promote_types(x_nd.dtype, jnp.float32)
        step = jax.nn.softplus(_times(x_nd, params["w_alpha"], wide) + params["dt_bias"].astype(wide))
        log_alpha = -jnp.exp(params["a_log"].astype(wide)) * step
        beta = jax.nn.sigmoid(_times(x_nd, params["w_beta"], wide))
        units = (
            unit_norm(t, self.eps, size).astype(t.dtype) for t, size in ((q, q.shape[-1] ** -0.5), (k, 1.0))
        )
        gates = (jnp.where(active_n[:, None], gate, 0) for gate in (log_alpha, beta))
        return (*units, v, *gates), history

    def _output(self, params: PyTree, x_nd: Array, o_nhv: Array) -> Array:
        scaled = rms_norm(o_nhv, params["norm_scale"], self.eps).reshape(x_nd.shape)
        return _times(scaled * jax.nn.silu(_times(x_nd, params["w_gate"])), params["w_out"])


def _times(x: Array, w: Array, dtype: jnp.dtype | None = None) -> Array:
    """The product x w, computed in x's dtype; dtype: that of the result, if it is another."""
    return jnp.matmul(x, w.astype(x.dtype), preferred_element_type=dtype)


def _a_log(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """exp of it is uniform in [1, 16]."""
    return jnp.log(jax.random.uniform(key, shape, dtype, 1.0, 16.0))


def _dt_bias(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """softplus of it is log-uniform in [0.001, 0.1]."""
    step = 10.0 ** jax.random.uniform(key, shape, dtype, -3.0, -1.0)
    return step + jnp.log(-jnp.expm1(-step))


ARRAYS: ArrayKinds = (
    ("gated_deltanet_scale", ("dim",), "of the norm before Gated DeltaNet"),
    ("gated_deltanet_bias", ("dim",), "of that norm in the reference style"),
    ("gated_deltanet.w_{q,k,v,gate}", ("in", "out"), "x @ w; out is heads times head width"),
    ("gated_deltanet.w_out", ("in", "out"), "x @ w, from the heads to the residual stream"),
    ("gated_deltanet.w_{alpha,beta}", ("dim", "head"), "x @ w; logits of decay and write"),
    ("gated_deltanet.conv", ("window", "qkv"), "causal taps, as those of attention"),
    ("gated_deltanet.{a_log,dt_bias}", ("head",), "of the decay; no write changes them"),
    ("gated_deltanet.norm_scale", ("head_dim",), "of the outputs' RMSNorm; all heads alike"),
)
"""What Gated DeltaNet is exported as."""
