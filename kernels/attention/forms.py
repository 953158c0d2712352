"""Exact attention in three forms: cuDNN's on NVIDIA GPUs where it takes the arrays, tiles elsewhere, and one
piece where little is seen or derivatives are taken twice.

The device is known only when a program is lowered, so the choice between platforms is made there: a program
that is compiled for an absent GPU has the GPU's form.

Tile by tile (FlashAttention, arXiv 2205.14135) n x m logits never exist at once. A tile is a block of queries
against a block of keys. One scan goes over the tiles, carries each query's largest logit, sum and weighted
sum, and leaves out tiles in which nothing is seen. The backward pass makes each tile again, and has no
derivative. Where blocks do not divide the tokens, the last one begins earlier, and what the block before has
had of it is masked.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.core.types import Array

BLOCK = 256
"""Queries and keys of a tile, at most."""

_UNSEEN = -1e30
"""Logit of what is masked: finite, so that a query which has seen nothing yet has no NaN."""

QUERIES, KEYS = 0, 1
"""What axis 1 of an array is, and the place of its block in a tile."""

Parts = tuple[Array, ...]
Update = Callable[[Parts, Callable[..., Array], Array], Parts]
"""(arrays of a tile before it, the part in the tile of an array and what its axis 1 is, what is seen in it:
bool [B, 1, n, m]) -> after it."""


class Sight(NamedTuple):
    """query_at, key_at: int32 [1, n], [1, m] positions. queries_of, keys_of: int32 [B, n], [B, m] documents,
    at least 0; below that of keys that are not there. A query sees the keys of its document that are not
    later, itself among them."""

    query_at: Array
    key_at: Array
    queries_of: Array
    keys_of: Array

    def mask(self, window: int) -> Array:
        """bool [B, n, m]: what is seen. window: positions that a query sees; 0: all."""
        query_at, key_at = self.query_at[:, :, None], self.key_at[:, None]
        seen = (key_at <= query_at) & (self.queries_of[:, :, None] == self.keys_of[:, None])
        return seen & (key_at > query_at - window) if window else seen


def tiles_of(queries: int, keys: int, window: int, aligned: bool) -> np.ndarray:
    """int32 [p, 2]: blocks of queries and of keys. aligned: queries are keys, in order, so it is known which
    tiles the future and the window leave."""
    i, j = np.indices((-(-queries // BLOCK), -(-keys // BLOCK)), np.int32).reshape(2, -1)
    left = (j <= i) & ((BLOCK * (j + 1) > BLOCK * i - window + 1) | (not window)) if aligned else j >= 0
    return np.stack([i, j], 1)[left]


def _over_tiles(
    update: Update, start: Parts, sides: tuple[int, ...], sight: Sight, window: int, aligned: bool
) -> Parts:
    """`start` after all tiles. sides: what axis 1 of its arrays is."""
    lengths = sight.query_at.shape[1], sight.key_at.shape[1]

    def body(carried: Parts, tile: Array) -> tuple[Parts, None]:
        def part(t: Array, side: int) -> Array:
            return jax.lax.dynamic_slice_in_dim(t, tile[side] * BLOCK, min(lengths[side], BLOCK), axis=1)

        query_new, key_new = (
            part(jnp.arange(lengths[s])[None], s) >= tile[s] * BLOCK for s in (QUERIES, KEYS)
        )
        seen = Sight(*map(part, sight, (QUERIES, KEYS, QUERIES, KEYS))).mask(window)
        seen &= query_new[:, :, None] & key_new[:, None]
        before = tuple(map(part, carried, sides))
        after = jax.lax.cond(seen.any(), lambda: update(before, part, seen[:, None]), lambda: before)
        at = (tile[side] * BLOCK for side in sides)
        return tuple(map(partial(jax.lax.dynamic_update_slice_in_dim, axis=1), carried, after, at)), None

    return jax.lax.scan(body, start, jnp.asarray(tiles_of(*lengths, window, aligned)))[0]


def _logits(query: Array, key: Array, seen: Array, dtype: jnp.dtype) -> Array:
    product = jnp.einsum("bnhk,bmhk->bhnm", query, key, preferred_element_type=dtype)
    return jnp.where(seen, product * query.shape[-1] ** -0.5, _UNSEEN)


def _forward(
    query: Array, key: Array, value: Array, sight: Sight, window: int, aligned: bool
) -> tuple[Array, Any]:
    dtype = jnp.promote_types(query.dtype, jnp.float32)

    def update(before: Parts, part: Callable[..., Array], seen: Array) -> Parts:
        top, total, weighted = before  # [B, n, H, 1], and [B, n, H, K]
        logits = _logits(part(query, QUERIES), part(key, KEYS), seen, dtype)
        most = jnp.maximum(top, logits.max(-1, keepdims=True).swapaxes(1, 2))
        weights, old = jnp.exp(logits - most.swapaxes(1, 2)), jnp.exp(top - most)
        values, narrow = part(value, KEYS), weights.astype(value.dtype)
        new = jnp.einsum("bhnm,bmhk->bnhk", narrow, values, preferred_element_type=dtype)
        return most, total * old + weights.sum(-1, keepdims=True).swapaxes(1, 2), weighted * old + new

    zeros = jnp.zeros(query.shape, dtype)
    start = zeros[..., :1] + _UNSEEN, zeros[..., :1], zeros
    top, total, weighted = _over_tiles(update, start, (QUERIES,) * 3, sight, window, aligned)
    out = (weighted / total).astype(query.dtype)
    return out, (query, key, value, sight, out, top + jnp.log(total))


def _backward(window: int, aligned: bool, saved: Any, g: Array) -> Any:
    query, key, value, sight, out, total = saved
    to = partial(jnp.einsum, preferred_element_type=total.dtype)
    along = (g * out).sum(-1, keepdims=True, dtype=total.dtype)

    def update(before: Parts, part: Callable[..., Array], seen: Array) -> Parts:
        q, k, v, g_q = part(query, QUERIES), part(key, KEYS), part(value, KEYS), part(g, QUERIES)
        weights = jnp.exp(_logits(q, k, seen, total.dtype) - part(total, QUERIES).swapaxes(1, 2))
        over = to("bnhk,bmhk->bhnm", g_q, v) - part(along, QUERIES).swapaxes(1, 2)
        signal = (q.shape[-1] ** -0.5 * weights * over).astype(q.dtype)
        dq, dk = to("bhnm,bmhk->bnhk", signal, k), to("bhnm,bnhk->bmhk", signal, q)
        more = dq, dk, to("bhnm,bnhk->bmhk", weights.astype(q.dtype), g_q)
        return tuple(map(jnp.add, before, more))

    given = query, key, value
    start = tuple(jnp.zeros(t.shape, total.dtype) for t in given)
    found = _over_tiles(update, start, (QUERIES, KEYS, KEYS), sight, window, aligned)
    return *(t.astype(like.dtype) for t, like in zip(found, given, strict=True)), None


attend_in_blocks = jax.custom_vjp(lambda *given: _forward(*given)[0], nondiff_argnums=(4, 5))
"""`attend` of query, key, value, sight, window, aligned; not to be differentiated twice."""
attend_in_blocks.defvjp(_forward, _backward)


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
