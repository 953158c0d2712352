"""Which parameters give their gradient as factors (`hope_jax.memory.tapped`), and how it is put together.

They are all matrices [L, I, O] of the blocks but those of memories that write while they read, whose kernel
has a backward pass of its own; and the embedding, which is looked up at the tokens and multiplied at the
head.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hope_jax import trees
from hope_jax.memory import tapped
from hope_jax.memory.tapped import Factors, Tapped
from hope_jax.types import Array, PyTree

EMBED = "embed"


class EmbeddingTaps(NamedTuple):
    """looked_up: [B, n, D] cotangents of what tokens look up; errors: [B, n, V] those of the logits, or None:
    the head is not tapped. Zeros before the derivative is taken."""

    looked_up: Array
    errors: Array | None


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
    params: PyTree,
    modules: Mapping[str, Collection[str]],
    shape: tuple[int, int],
    dtype: jnp.dtype,
    *,
    written: int | None,
    embed: bool,
    head: bool,
) -> Taps:
    """Taps of the matrices of the named modules, for a read of tokens [B, n] that computes in `dtype`.

    modules: with the names of their parameters that act through writes alone, of `written` tokens (None: not
    tapped). embed: and of the embedding where tokens look it up; head: and where it is the head.
    """

    def tap(path: tuple[Any, ...], leaf: Array) -> Factors | None:
        names = [entry.key for entry in path]
        if names[0] not in modules or not names[-1].startswith("w_") or leaf.ndim != 3:
            return None
        tokens = written if names[1] in modules[names[0]] else shape[1]
        if tokens is None:
            return None
        at = (leaf.shape[0], shape[0], tokens)
        return Factors(jnp.zeros((*at, leaf.shape[1]), dtype), jnp.zeros((*at, leaf.shape[2]), dtype))

    blocks = jax.tree_util.tree_map_with_path(tap, params["blocks"])
    if not embed:
        return Taps(blocks, None)
    vocab, dim = params[EMBED].shape
    errors = jnp.zeros((*shape, vocab), dtype) if head else None
    return Taps(blocks, EmbeddingTaps(jnp.zeros((*shape, dim), dtype), errors))


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


def attach_outer(params: PyTree, plain: PyTree, head: Array, outer: Taps, pulled: Taps) -> PyTree:
    """`attach` for a function with a derivative inside, which takes taps of its own (`with_inner`).

    head: [V, D] the embedding as the head, which is differentiated as it is. outer, pulled: see `Tapped`;
    parameters that are not read are in `outer` alone.
    """

    def joined(outer: Factors | None, pulled: Factors | None, w: Array, other: Array | None) -> Any:
        if outer is None:
            return other
        held = jax.lax.stop_gradient(w)
        return Tapped(held, outer) if pulled is None else Tapped(held, None, outer, pulled)

    blocks = tapped.over(joined, outer.blocks, pulled.blocks, params["blocks"], plain["blocks"])
    assert outer.embed is not None
    return {**plain, "blocks": blocks, EMBED: TappedEmbedding(head, outer.embed)}


def with_inner(params: PyTree, taps: Taps) -> PyTree:
    """The parameters, perhaps of `attach_outer`, with taps of a derivative that leaves them constant; the
    derivative of that is not cut."""

    def joined(tap: Factors | None, w: Array | Tapped) -> Array | Tapped:
        if tap is None:
            return w
        return w._replace(taps=tap) if isinstance(w, Tapped) else Tapped(w, tap)

    return {**params, "blocks": tapped.over(joined, taps.blocks, params["blocks"])}


def read_alone(taps: Taps, write_only: Mapping[str, Collection[str]]) -> Taps:
    """The taps but for those of parameters that act through writes alone, by module."""

    def kept(path: tuple[Any, ...], tap: Factors) -> Factors | None:
        names = [entry.key for entry in path]
        return None if names[1] in write_only.get(names[0], ()) else tap

    def is_tap(node: object) -> bool:
        return isinstance(node, Factors)

    return Taps(jax.tree_util.tree_map_with_path(kept, taps.blocks, is_leaf=is_tap), None)


def both_products(outer: Taps, pulled: Taps) -> Taps:
    """The factors of what `attach_outer` has tapped, those of a matrix's two products one after the other."""

    def joined(outer: Factors | None, pulled: Factors | None) -> Factors | None:
        if outer is None or pulled is None:
            return outer
        return Factors(*(jnp.concatenate(pair, axis=-2) for pair in zip(outer, pulled, strict=True)))

    return outer._replace(blocks=tapped.over(joined, outer.blocks, pulled.blocks))


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
        return jax.lax.stop_gradient(embed.value)[tokens_n].astype(dtype) + embed.taps.looked_up
    return embed[tokens_n].astype(dtype)


def block_axes(blocks: PyTree) -> Any:
    """`in_axes` of parameters of blocks in a map over examples: taps have a batch axis, the rest has none."""

    def axes(node: Array | Tapped) -> Tapped | None:
        if not isinstance(node, Tapped):
            return None
        every: Tapped = jax.tree.map(lambda _: 1, node)
        return every._replace(value=None)  # type: ignore[arg-type]

    return jax.tree.map(axes, blocks, is_leaf=lambda node: isinstance(node, Tapped))


def example_axes(params: PyTree) -> Any:
    """`in_axes` of all parameters; see `block_axes`."""
    axes: dict[str, Any] = {**dict.fromkeys(params), "blocks": block_axes(params["blocks"])}
    if isinstance(params[EMBED], TappedEmbedding):
        axes[EMBED] = TappedEmbedding(None, jax.tree.map(lambda _: 0, params[EMBED].taps))  # type: ignore[arg-type]
    return axes


add_gradients = jax.named_scope("gradient_sum")(trees.add)
"""Leaf-wise a + b, under a name of its own in the compiled program (`hope_jax.profile`)."""


@jax.named_scope("gradient_sum")
def gradient(params: PyTree, plain: PyTree, factors: Taps, tokens: Array, at_head: Array | None) -> PyTree:
    """The whole gradient, a tree like `params`.

    plain: of the parameters that are not tapped (`without`). factors: of the others, with a leading axis of
    chunks. tokens: int32 [chunks, B, n]. at_head: [V, D] the embedding's share as the head, if it is tapped.
    """

    def product(factor: Factors | None, w: Array, g: Array | None) -> Array | None:
        return g if factor is None else _summed(factor, w.dtype)

    blocks = tapped.over(product, factors.blocks, params["blocks"], plain["blocks"])
    if factors.embed is None or at_head is None:
        return {**plain, "blocks": blocks}
    looked_up = factors.embed.looked_up.astype(at_head.dtype)
    return {**plain, "blocks": blocks, EMBED: at_head.at[tokens].add(looked_up)}


def head_gradient(params: PyTree, factors: Taps, hidden: Array) -> Array | None:
    """[V, D], of the errors and hidden states [chunks, B, n, D] that the head has read; None: not tapped."""
    if factors.embed is None or factors.embed.errors is None:
        return None
    errors = factors.embed.errors
    return jnp.einsum("cbnv,cbnd->vd", errors, hidden, preferred_element_type=params[EMBED].dtype)


def _summed(factors: Factors, dtype: jnp.dtype) -> Array:
    """[L, I, O] of factors [chunks, L, B, n, ...], all added up."""

    def by_layer(t: Array) -> Array:
        return jnp.moveaxis(t, 1, 0).reshape(t.shape[1], -1, t.shape[-1])

    rows, cotangents = by_layer(factors.rows), by_layer(factors.cotangents)
    return jnp.einsum("lni,lno->lio", rows, cotangents, preferred_element_type=dtype)
