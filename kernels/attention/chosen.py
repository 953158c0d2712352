"""Which form of attention is compiled: cuDNN's on NVIDIA GPUs where it takes the arrays, tiles elsewhere.

The device is known only when a program is lowered, so the choice between platforms is made there: a program
that is compiled for an absent GPU has the GPU's form.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
from hope_jax.kernels.attention.blocks import BLOCK, Sight, attend_in_blocks

from hope_jax.core.types import Array

_library = jax.nn.dot_product_attention


@cache
def _has_cudnn() -> bool:
    """Whether JAX has found cuDNN: else the call cannot even be traced."""
    one = jax.ShapeDtypeStruct((1, 2, 1, 8), jnp.bfloat16)
    try:
        jax.eval_shape(partial(_library, implementation="cudnn"), one, one, one)
    except RuntimeError:
        return False
    return True


def cudnn_takes(query: Array, key: Array) -> bool:
    """16 bits; heads of at most 128 in steps of 8; even lengths, which gradients with a mask need."""
    (queries, _, width), keys = query.shape[1:], key.shape[1]
    even = queries % 2 == keys % 2 == width % 8 == 0
    return query.dtype.itemsize == 2 and even and width <= 128


def form_in(program: str) -> str:
    """Which form the text of a compiled program with attention has."""
    calls = program.count('custom_call_target="__cudnn$fmha')
    return f"cuDNN, {calls} calls in the program" if calls else "XLA"


def attend_plain(query: Array, key: Array, value: Array, mask: Array) -> Array:
    """`attend` in one piece, as often differentiable as one likes. mask: bool [B, n, m]."""
    if query.dtype != jnp.float64:
        return _library(query, key, value, mask=mask[:, None])
    # The library takes the softmax in float32 whatever the inputs are; parity needs it in float64.
    logits = jnp.einsum("bnhk,bmhk->bhnm", query, key) / jnp.sqrt(jnp.asarray(query.shape[-1], query.dtype))
    weights = jax.nn.softmax(jnp.where(mask[:, None], logits, -jnp.inf), axis=-1)
    return jnp.einsum("bhnm,bmhk->bnhk", weights, value)


def attend(
    query: Array, key: Array, value: Array, sight: Sight, *, window: int, aligned: bool, twice: bool
) -> Array:
    """softmax(q k^T / sqrt(K)) v over the keys that each query sees.

    query: [B, n, heads, K]; key, value: [B, m, heads, K], cast to the query's dtype. window: positions that a
    query sees, its own included; 0: all. aligned: queries are keys, position by position. twice: it will be
    differentiated twice, which neither tiles nor cuDNN can be. Returns [B, n, heads, K].
    """
    given = query, key.astype(query.dtype), value.astype(query.dtype), sight

    @jax.checkpoint  # what it would keep for the backward pass grows with the keys
    def plain(query: Array, key: Array, value: Array, sight: Sight) -> Array:
        return attend_plain(query, key, value, sight.mask(window))

    def tiles(query: Array, key: Array, value: Array, sight: Sight) -> Array:
        return attend_in_blocks(query, key, value, sight, window, aligned)

    def cudnn(query: Array, key: Array, value: Array, sight: Sight) -> Array:
        mask = sight.mask(window)[:, None]
        return _library(query, key, value, mask=mask, is_causal=aligned, implementation="cudnn")

    form = plain if twice or query.shape[1] * key.shape[1] <= BLOCK * BLOCK else tiles
    if twice or not cudnn_takes(query, key) or not _has_cudnn():
        return form(*given)
    return jax.lax.platform_dependent(*given, cuda=cudnn, default=form)
