"""Which parameters give their gradient as factors (`hope_jax.memory.tapped`), and how it is put together.

They are all matrices [L, I, O] of the blocks but those of memories that write while they read, whose kernel
has a backward pass of its own; and the embedding, which is looked up at the tokens and multiplied at the
head.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hope_jax.memory import tapped
from hope_jax.memory.tapped import Factors, Tapped
from hope_jax.types import Array, PyTree

EMBED = "embed"


class EmbeddingTaps(NamedTuple):
    """looked_up: [B, n, D] cotangents of what tokens look up; errors: [B, n, V] those of the logits. Zeros
    before the derivative is taken."""

    looked_up: Array
    errors: Array


class TappedEmbedding(NamedTuple):
    """The embedding [V, D], held constant, with its taps."""

    value: Array
    taps: EmbeddingTaps


class Taps(NamedTuple):
    """blocks: tree like the blocks' parameters, `Factors` [L, B, n, ...] at tapped matrices and None at other
    leaves. embed: None: not tapped."""

    blocks: PyTree
    embed: EmbeddingTaps | None


def init_taps(
    params: PyTree, modules: Collection[str], shape: tuple[int, int], dtype: jnp.dtype, *, embed: bool
) -> Taps:
    """Taps of the matrices of the named modules, for a read of tokens [B, n] that computes in `dtype`.

    embed: and of the embedding.
    """

    def tap(path: tuple[Any, ...], leaf: Array) -> Factors | None:
        names = [entry.key for entry in path]
        if names[0] not in modules or not names[-1].startswith("w_") or leaf.ndim != 3:
            return None
        at = (leaf.shape[0], *shape)
        return Factors(jnp.zeros((*at, leaf.shape[1]), dtype), jnp.zeros((*at, leaf.shape[2]), dtype))

    blocks = jax.tree_util.tree_map_with_path(tap, params["blocks"])
    if not embed:
        return Taps(blocks, None)
    vocab, dim = params[EMBED].shape
    return Taps(blocks, EmbeddingTaps(jnp.zeros((*shape, dim), dtype), jnp.zeros((*shape, vocab), dtype)))


def attach(params: PyTree, plain: PyTree, taps: Taps) -> PyTree:
    """The parameters with taps at their matrices and embedding, which are held constant; the others from
    `plain` (`without`)."""

    def joined(tap: Factors | None, w: Array, other: Array | None) -> Array | Tapped | None:
        return other if tap is None else Tapped(jax.lax.stop_gradient(w), tap)

    blocks = tapped.over(joined, taps.blocks, params["blocks"], plain["blocks"])
    embed = (
        plain[EMBED]
        if taps.embed is None
        else TappedEmbedding(jax.lax.stop_gradient(params[EMBED]), taps.embed)
    )
    return {**plain, "blocks": blocks, EMBED: embed}


def without(params: PyTree, taps: Taps) -> PyTree:
    """The parameters that are not tapped; None in place of the others."""
    blocks = tapped.over(lambda tap, w: w if tap is None else None, taps.blocks, params["blocks"])
    return {**params, "blocks": blocks, EMBED: params[EMBED] if taps.embed is None else None}


def values(params: PyTree) -> PyTree:
    """The parameters without taps, tapped ones constant."""
    return {**params, "blocks": tapped.values(params["blocks"]), EMBED: embedding(params)}


def embedding(params: PyTree) -> Array:
    """The embedding [V, D], constant if it is tapped."""
    embed = params[EMBED]
    return embed.value if isinstance(embed, TappedEmbedding) else embed


def look_up(embed: Array | TappedEmbedding, tokens_n: Array, dtype: jnp.dtype) -> Array:
    """The embedding's rows [n, D] at the tokens, of one example."""
    if isinstance(embed, TappedEmbedding):
        return embed.value[tokens_n].astype(dtype) + embed.taps.looked_up
    return embed[tokens_n].astype(dtype)


def block_axes(blocks: PyTree) -> Any:
    """`in_axes` of parameters of blocks in a map over examples: taps have a batch axis, the rest has none."""

    def axes(node: Array | Tapped) -> Tapped | None:
        return Tapped(None, Factors(1, 1)) if isinstance(node, Tapped) else None  # type: ignore[arg-type]

    return jax.tree.map(axes, blocks, is_leaf=lambda node: isinstance(node, Tapped))


def example_axes(params: PyTree) -> Any:
    """`in_axes` of all parameters; see `block_axes`."""
    axes: dict[str, Any] = {**dict.fromkeys(params), "blocks": block_axes(params["blocks"])}
    if isinstance(params[EMBED], TappedEmbedding):
        axes[EMBED] = TappedEmbedding(None, EmbeddingTaps(0, 0))  # type: ignore[arg-type]
    return axes


def gradient(params: PyTree, plain: PyTree, factors: Taps, tokens: Array, hidden: Array) -> PyTree:
    """The whole gradient, a tree like `params`.

    plain: of the parameters that are not tapped (`without`). factors: of the others, with a leading axis of
    chunks. tokens: int32 [chunks, B, n]; hidden: [chunks, B, n, D] what the head has read.
    """

    def product(factor: Factors | None, w: Array, g: Array | None) -> Array | None:
        return g if factor is None else _summed(factor, w.dtype)

    blocks = tapped.over(product, factors.blocks, params["blocks"], plain["blocks"])
    if factors.embed is None:
        return {**plain, "blocks": blocks}
    looked_up, errors = factors.embed
    embed = params[EMBED]
    at_head = jnp.einsum("cbnv,cbnd->vd", errors, hidden, preferred_element_type=embed.dtype)
    return {**plain, "blocks": blocks, EMBED: at_head.at[tokens].add(looked_up.astype(embed.dtype))}


def _summed(factors: Factors, dtype: jnp.dtype) -> Array:
    """[L, I, O] of factors [chunks, L, B, n, ...], all added up."""

    def by_layer(t: Array) -> Array:
        return jnp.moveaxis(t, 1, 0).reshape(t.shape[1], -1, t.shape[-1])

    rows, cotangents = by_layer(factors.rows), by_layer(factors.cotangents)
    return jnp.einsum("lni,lno->lio", rows, cotangents, preferred_element_type=dtype)
