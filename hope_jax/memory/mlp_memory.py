"""One residual MLP memory: y = x + W_down act(W_up LN(x)), read with deltas and differentiated for a write.

A level's parameters are a dict: `w_up` [D, H], `w_down` [H, D] and, where there are any, `ln_scale`,
`ln_bias` [D] (slow), `b_up` [H], `b_down` [D]. Its *fast weights* are the matrices and their biases; `delta`
holds what a context has added to them. Everything here is for one example; rows are tokens.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hope_jax.core.types import Array
from hope_jax.kernels.cms_write import Affine, root
from hope_jax.memory.norms import norm
from hope_jax.memory.state import Taps

GROUPS = (("w_up", "b_up"), ("w_down", "b_down"))
"""Names of the weights that a write changes; LayerNorm's affine part is slow. A matrix and its bias are one
affine map, and are bounded as one."""

Weights = dict[str, Array]


OnDelta = tuple[Array, Array]
"""What a read has multiplied with delta: z dW_up [n, H] and a dW_down [n, D]. A write needs them again."""


class Forward(NamedTuple):
    """The MLP's steps. z: [n, D] input; h: [n, H] pre-activation; a: [n, H] activation; o: [n, D] output;
    on_delta: None where there was no delta."""

    z: Array
    h: Array
    a: Array
    o: Array
    on_delta: OnDelta | None


class Trace(NamedTuple):
    """What a read leaves for a write. z: [n, D] input of the first matrix.

    a: [n, H] hidden activation, clip: [n, 1] what the bound on the output left of it (None: no bound), and
    on_delta; recorded where the read has a tap at the hidden layer, else None: the write computes them again.
    """

    z: Array
    a: Array | None = None
    clip: Array | None = None
    on_delta: OnDelta | None = None


class WriteFactors(NamedTuple):
    """Per-token factors of a write's gradient: dW_up = z^T g_h and dW_down = a^T g_o, summed over tokens.

    z: [n, D] input; g_h: [n, H] cotangent of the hidden pre-activation; a: [n, H] hidden activation;
    g_o: [n, D] cotangent of the MLP's output before any bound. on_delta: None where it was not recorded.
    h: [n, H] pre-activation and o: [n, D] output, where the cotangents stand; None where the factors are
    those of a read.
    """

    z: Array
    g_h: Array
    a: Array
    g_o: Array
    on_delta: OnDelta | None = None
    h: Array | None = None
    o: Array | None = None


def maps_of(weights: Weights) -> tuple[Affine, ...]:
    """The affine map of each of `GROUPS`."""
    return tuple(Affine(weights[matrix], weights.get(bias)) for matrix, bias in GROUPS)


def by_name(maps: Iterable[Affine]) -> Weights:
    """The inverse of `maps_of`."""
    pairs = zip(GROUPS, maps, strict=True)
    return {name: w for group, one in pairs for name, w in zip(group, one, strict=True) if w is not None}


def fast_weights(params: Weights) -> Weights:
    """The part of a level's parameters that writes change."""
    return by_name(maps_of(params))


def gelu(x: Array) -> Array:
    """The exact GELU, x Phi(x), by erf in at least float32.

    `jax.nn.gelu` takes erfc, whose two branches XLA:CPU computes again in every product that x goes into.
    Exact digits of very negative x are lost: the error is that of 1 + erf times |x|.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (0.5 * wide * (1 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {"gelu": gelu, "relu": jax.nn.relu, "silu": jax.nn.silu}
"""The elementwise functions of a hidden layer, by `ModelSpec.activation`; writes take their derivatives."""


def normalise(params: Weights, x: Array) -> Array:
    """LN(x), or x for a level without LayerNorm."""
    return norm(params, x, "ln_")


def affine(x: Array, params: Weights, delta: Weights | None, w: str, b: str) -> tuple[Array, Array | None]:
    """x (W + dW) + b + db in x's dtype, and x dW (None without a delta).

    Two products rather than one with the sum: a small delta survives in bfloat16, and the gradient of W
    needs no per-example copy of the matrix.
    """
    y, on_delta = x @ params[w].astype(x.dtype), None
    if delta is not None:
        on_delta = x @ delta[w].astype(x.dtype)
        y = y + on_delta
    if b in params:
        bias = params[b] if delta is None else params[b] + delta[b]
        y = y + bias.astype(x.dtype)
    return y, on_delta


def clip_factor(o: Array, max_norm: float) -> Array:
    """The factor [n, 1] that bounds each token's norm to max_norm; a constant for differentiation."""
    size = jnp.linalg.norm(o.astype(jnp.promote_types(o.dtype, jnp.float32)), axis=-1, keepdims=True)
    return jax.lax.stop_gradient(1.0 / jnp.maximum(size / max_norm, 1.0)).astype(o.dtype)


def forward(
    weights: Weights, delta: Weights | None, z: Array, activation: str, tap: Array | None = None
) -> Forward:
    """W_down act(W_up z) of z [n, D] at weights + delta. tap: [n, H], added to the pre-activation."""
    h, up = affine(z, weights, delta, "w_up", "b_up")
    if tap is not None:
        h = h + tap.astype(h.dtype)
    a = ACTIVATIONS[activation](h)
    o, down = affine(a, weights, delta, "w_down", "b_down")
    return Forward(z, h, a, o, None if up is None or down is None else (up, down))


def read(
    params: Weights,
    delta: Weights | None,
    x: Array,
    taps: Taps | None = None,
    *,
    output_clip: float | None = None,
    activation: str = "gelu",
) -> tuple[Array, Trace]:
    """x [n, D] -> y = x + W_down act(W_up LN(x)) [n, D] at weights params + delta (Eq. 71's inner MLP).

    output_clip bounds the norm of what is added to each token (the reference's train mode has 1.0; None:
    off). activation: of `ACTIVATIONS`.
    """
    z = normalise(params, x)
    hidden = None if taps is None else taps.hidden
    _, _, a, o, on_delta = forward(params, delta, z, activation, hidden)
    clip = None if output_clip is None else clip_factor(o, output_clip)
    y = x + (o if clip is None else o * clip)
    if taps is not None:
        y = y + taps.output.astype(y.dtype)
    return y, Trace(z) if hidden is None else Trace(z, a, clip, on_delta)


def factors_of_read(trace: Trace, own: Taps, mask: Array) -> WriteFactors:
    """The factors of a write whose signal is the read's own cotangents, zero where mask [n] is False."""
    assert trace.a is not None and own.hidden is not None
    g_o = own.output if trace.clip is None else own.output * trace.clip
    g_h, g_o = (jnp.where(mask[:, None], g, 0).astype(trace.z.dtype) for g in (own.hidden, g_o))
    return WriteFactors(trace.z, g_h, trace.a, g_o, trace.on_delta)


def write_factors(
    weights: Weights,
    delta: Weights,
    z: Array,
    teach: Array,
    read: Forward | None = None,
    *,
    output_clip: float | None = None,
    activation: str = "gelu",
) -> WriteFactors:
    """Factors of the gradient of sum_t <teach_t, y_t> with respect to the fast weights, by a local
    derivative.

    z: [n, D] as the read has seen it; teach: [n, D], zero where a token is masked. The gradient is taken at
    weights + delta, which must be the weights that read z. read: what that read has computed, if it is known.
    """
    z, h, a, o, on_delta = read or forward(weights, delta, z, activation)
    g_o = teach.astype(z.dtype)
    if output_clip is not None:
        g_o = g_o * clip_factor(o, output_clip)
    g_a = g_o @ weights["w_down"].astype(z.dtype).T + g_o @ delta["w_down"].astype(z.dtype).T
    (g_h,) = jax.vjp(ACTIVATIONS[activation], h)[1](g_a)
    return WriteFactors(z, g_h, a, g_o, on_delta, h, o)


def write_gradient(factors: WriteFactors, like: Weights) -> Weights:
    """The gradient of each fast weight in `like`, summed over the factors' tokens, in `like`'s dtype."""

    def outer(x: Array, g: Array, name: str) -> Array:
        return jnp.einsum("ni,no->io", x, g, preferred_element_type=like[name].dtype)

    grads = {"w_up": outer(factors.z, factors.g_h, "w_up"), "w_down": outer(factors.a, factors.g_o, "w_down")}
    for name, cotangent in (("b_up", factors.g_h), ("b_down", factors.g_o)):
        if name in like:
            grads[name] = cotangent.astype(like[name].dtype).sum(0)
    return grads


def group_norms(weights: Weights) -> tuple[Array, ...]:
    """Frobenius norm of each of `GROUPS`, with slope zero at zero."""
    squares = ([jnp.square(w).sum() for w in one if w is not None] for one in maps_of(weights))
    return tuple(root(jnp.stack(parts).sum()) for parts in squares)
