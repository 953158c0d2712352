"""One residual MLP memory: y = x + W_down act(W_up LN(x)), read with deltas and differentiated for a write.

A level's parameters are a dict: `w_up` [D, H], `w_down` [H, D] and, where there are any, `ln_scale`,
`ln_bias` [D] (slow), `b_up` [H], `b_down` [D]. Its *fast weights* are the matrices and their biases; `delta`
holds what a context has added to them. Everything here is for one example; rows are tokens.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hope_jax.kernels.cms_write import root
from hope_jax.memory import tapped
from hope_jax.memory.tapped import Factors, multiply
from hope_jax.types import Array, PyTree

FAST_WEIGHTS = ("w_up", "b_up", "w_down", "b_down")
"""Names of the weights that a write changes; LayerNorm's affine part is slow."""

GROUPS = (("w_up", "b_up"), ("w_down", "b_down"))
"""A matrix and its bias are one affine map, and are bounded as one."""

LAYER_NORM_EPS = 1e-5

Weights = dict[str, Array]


class WriteFactors(NamedTuple):
    """Per-token factors of a write's gradient: dW_up = z^T g_h and dW_down = a^T g_o, summed over tokens.

    z: [n, D] LayerNorm output; g_h: [n, H] cotangent of the hidden pre-activation;
    a: [n, H] hidden activation; g_o: [n, D] cotangent of the MLP's output.
    h: [n, H] pre-activation and o: [n, D] output (before any clip), where the cotangents stand; None where
    the factors are those of a read.
    """

    z: Array
    g_h: Array
    a: Array
    g_o: Array
    h: Array | None
    o: Array | None


def factors_of_read(factors: dict[str, Factors]) -> WriteFactors:
    """What a read's backward pass has found at the memory's tapped matrices, as factors of a write."""
    up, down = factors["w_up"], factors["w_down"]
    return WriteFactors(z=up.rows, g_h=up.cotangents, a=down.rows, g_o=down.cotangents, h=None, o=None)


def with_gain(factors: WriteFactors, gain_n: Array) -> WriteFactors:
    """The factors of the gradient at cotangents gain_n times as large."""

    def scaled(g: Array) -> Array:
        return (gain_n[:, None] * g).astype(g.dtype)

    return factors._replace(g_h=scaled(factors.g_h), g_o=scaled(factors.g_o))


def fast_weights(params: Weights) -> Weights:
    """The part of a level's parameters that writes change, tapped where those are."""
    return {name: params[name] for name in FAST_WEIGHTS if name in params}


def layer_norm(x: Array, scale: Array, bias: Array, eps: float = LAYER_NORM_EPS) -> Array:
    """LayerNorm over the last axis with biased variance; statistics in at least float32."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = wide.mean(-1, keepdims=True)
    variance = jnp.square(wide - mean).mean(-1, keepdims=True)
    normed = (wide - mean) * jax.lax.rsqrt(variance + eps) * scale + bias
    return normed.astype(x.dtype)


def gelu(x: Array) -> Array:
    """The exact GELU, x Phi(x), by erf in at least float32.

    `jax.nn.gelu` takes erfc, whose two branches XLA:CPU computes again in every product that x goes into.
    Exact digits of very negative x are lost: the error is that of 1 + erf times |x|.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (0.5 * wide * (1 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}
"""The elementwise functions of a hidden layer, by `ModelSpec.activation`; writes take their derivatives."""


def normalise(params: Weights, x: Array) -> Array:
    """LN(x), or x for a level without LayerNorm."""
    if "ln_scale" not in params:
        return x
    return layer_norm(x, params["ln_scale"], params["ln_bias"])


def affine(x: Array, params: Weights, delta: Weights | None, w: str, b: str) -> Array:
    """x (W + dW) + b + db in x's dtype.

    Two products rather than one with the sum: a small delta survives in bfloat16, and the gradient of W
    needs no per-example copy of the matrix.
    """
    y = multiply(x, params[w])
    if delta is not None:
        y = y + x @ delta[w].astype(x.dtype)
    if b in params:
        bias = params[b] if delta is None else params[b] + delta[b]
        y = y + bias.astype(x.dtype)
    return y


def clip_factor(o: Array, max_norm: float) -> Array:
    """1 / max(|o_t| / max_norm, 1) per token, a constant for differentiation. [n, 1]."""
    norm = jnp.linalg.norm(o.astype(jnp.promote_types(o.dtype, jnp.float32)), axis=-1, keepdims=True)
    return jax.lax.stop_gradient(1.0 / jnp.maximum(norm / max_norm, 1.0)).astype(o.dtype)


def read(
    params: Weights,
    delta: Weights | None,
    x: Array,
    *,
    output_clip: float | None = None,
    activation: str = "gelu",
) -> Array:
    """x [n, D] -> y [n, D] at weights params + delta (Eq. 71's inner MLP), its input added to `branch`."""
    return x + branch(params, delta, x, output_clip=output_clip, activation=activation)


def branch(
    params: Weights,
    delta: Weights | None,
    x: Array,
    *,
    output_clip: float | None = None,
    activation: str = "gelu",
) -> Array:
    """W_down act(W_up LN(x)) [n, D] at weights params + delta.

    output_clip bounds each token's norm (the reference's train mode has 1.0; None: off). activation: of
    `ACTIVATIONS`.
    """
    z = normalise(params, x)
    a = ACTIVATIONS[activation](affine(z, params, delta, "w_up", "b_up"))
    o = affine(a, params, delta, "w_down", "b_down")
    return o if output_clip is None else o * clip_factor(o, output_clip)


def write_factors(
    params: Weights,
    delta: Weights,
    x: Array,
    teach: Array,
    *,
    output_clip: float | None = None,
    activation: str = "gelu",
) -> WriteFactors:
    """Factors of the gradient of sum_t <teach_t, y_t> with respect to the fast weights.

    x: [n, D] inputs as the read pass saw them; teach: [n, D], zero where a token is masked. The gradient
    is taken at params + delta, which must be the weights that read x.
    """
    z = normalise(params, x)
    h = affine(z, params, delta, "w_up", "b_up")
    a, pull_to_h = jax.vjp(ACTIVATIONS[activation], h)
    o = affine(a, params, delta, "w_down", "b_down")
    g_o = teach.astype(x.dtype)
    if output_clip is not None:
        g_o = g_o * clip_factor(o, output_clip)
    g_a = g_o @ tapped.value(params["w_down"]).astype(x.dtype).T + g_o @ delta["w_down"].astype(g_o.dtype).T
    (g_h,) = pull_to_h(g_a)
    return WriteFactors(z=z, g_h=g_h, a=a, g_o=g_o, h=h, o=o)


def write_gradient(factors: WriteFactors, like: Weights) -> Weights:
    """The gradient of each fast weight in `like`, summed over the factors' tokens, in `like`'s dtype."""

    def outer(x: Array, g: Array, name: str) -> Array:
        return jnp.einsum("ni,no->io", x, g, preferred_element_type=like[name].dtype)

    grads = {
        "w_up": outer(factors.z, factors.g_h, "w_up"),
        "w_down": outer(factors.a, factors.g_o, "w_down"),
    }
    for name, cotangent in (("b_up", factors.g_h), ("b_down", factors.g_o)):
        if name in like:
            grads[name] = cotangent.astype(like[name].dtype).sum(0)
    return grads


def group_norms(weights: Weights) -> tuple[Array, ...]:
    """Frobenius norm of each of `GROUPS`, with slope zero at zero."""
    return tuple(
        root(jnp.stack([tapped.square(weights[name]) for name in group if name in weights]).sum())
        for group in GROUPS
    )


def measured(params: PyTree) -> PyTree:
    """A level's parameters with their matrices `tapped.measured`: for many writes at the same slow weights,
    each of which would pass over the matrices to find their norms."""
    matrices = {name: tapped.measured(params[name]) for name, _ in GROUPS}
    return {**params, **matrices}


def scale_groups(weights: Weights, factors: tuple[Array, ...]) -> Weights:
    """Each of `GROUPS` times its factor."""
    return {
        name: weights[name] * factor
        for group, factor in zip(GROUPS, factors, strict=True)
        for name in group
        if name in weights
    }
