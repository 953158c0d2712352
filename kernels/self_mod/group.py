"""The matrices of a group of memories that are written with one stream, and products of few rows with them.

Weights are kept as (out, in): the products with few rows, which are nearly all of the work, then run over
the long axis of the big matrix in the order in which it lies in memory.

A chunk multiplies each matrix with several sets of rows: what it reads, its keys and values, its errors. The
gradient of a matrix is an outer product of each, and taken one by one, as JAX's derivative does, each is a
pass over the whole matrix. So `Products` keeps a chunk's results and gives them out again as variables that
the rest of the chunk is differentiated by, and `joined` turns what concerns one matrix into one product.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

Memories: TypeAlias = dict[str, dict[str, jax.Array]]
"""Weights, or momentum buffers, by memory: `w_in` [hidden, D], `w_out` [out, hidden], perhaps `w_skip`
[out, D]."""

Group: TypeAlias = tuple[jax.Array, ...]
"""All W_in and then all W_skip as one matrix [R, D], then each W_out; behind them their buffers, if any."""

Written: TypeAlias = tuple[jax.Array, jax.Array, jax.Array, jax.Array]
"""(beside, right, scale, weight): the matrix scale W - sum over n rows r of weight_r left_r^T right_r.
beside: [O, I + n], W and left^T in one, which one product serves; right: [n, I]; scale: []; weight: [n]."""

Matrix: TypeAlias = jax.Array | Written

Rows: TypeAlias = dict[tuple[str, int], list[jax.Array]]
"""By product ("through" or "back") and matrix (index in the group), in the order of the calls."""


class Part(NamedTuple):
    """The shape of one memory of a group. skip: it has a W_skip."""

    name: str
    hidden: int
    out: int
    skip: bool


Layout: TypeAlias = tuple[Part, ...]


def layout_of(memories: Memories) -> Layout:
    """The static description of a group, from its weights (in the order of their names)."""
    return tuple(
        Part(name, m["w_in"].shape[0], m["w_out"].shape[0], "w_skip" in m)
        for name, m in sorted(memories.items())
    )


def stack(memories: Memories, buffers: Memories | None = None) -> Group:
    """The matrices of a group, in the order of `layout_of`."""
    ordered = [memories[name] for name in sorted(memories)]
    rows = [m["w_in"] for m in ordered] + [m["w_skip"] for m in ordered if "w_skip" in m]
    matrices = (jnp.concatenate(rows), *(m["w_out"] for m in ordered))
    return matrices if buffers is None else matrices + stack(buffers)


def unstack(group: Group, layout: Layout) -> tuple[Memories, Memories | None]:
    """The inverse of `stack`."""
    count = len(layout) + 1
    heights = [part.hidden for part in layout] + [part.out for part in layout if part.skip]
    rows = iter(jax.lax.split(group[0], heights))
    pairs = zip(layout, group[1:count], strict=True)
    memories = {part.name: {"w_in": next(rows), "w_out": w_out} for part, w_out in pairs}
    for part in layout:
        if part.skip:
            memories[part.name]["w_skip"] = next(rows)
    return memories, unstack(group[count:], layout)[0] if group[count:] else None


def change(layout: Layout, new: Group, old: Group) -> Memories:
    """Frobenius norm of what a write has changed in each matrix, by memory, without gradient."""
    apart = tuple(jax.lax.stop_gradient(a - b).astype(float) for a, b in zip(new, old, strict=True))
    return dict(jax.tree.map(jnp.linalg.norm, unstack(apart, layout)[0]))


def wide(x: jax.Array) -> jax.Array:
    """The array in at least float32."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def through(w: Matrix, x: jax.Array) -> jax.Array:
    """x w^T for few rows x [n, I] and w [O, I]: [n, O], multiplied in x's dtype, in at least float32.

    As w x^T, with the transposed x fenced off: XLA would fold the transposes into one product again, which
    on CPU is half as fast at 8 rows.
    """
    if not isinstance(w, jax.Array):
        beside, right, scale, weight = w
        inside = -weight * back(right.T, x)
        w, x = beside, jnp.concatenate([scale * wide(x), inside], 1).astype(x.dtype)
    few = jax.lax.optimization_barrier(x.T)
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    return jax.lax.optimization_barrier(jnp.matmul(w.astype(x.dtype), few, preferred_element_type=dtype)).T


def back(w: Matrix, d: jax.Array) -> jax.Array:
    """d w for few rows d [n, O] and w [O, I]: [n, I], multiplied in d's dtype, in at least float32."""
    if not isinstance(w, jax.Array):
        beside, right, scale, weight = w
        both, (n, width) = back(beside, d), right.shape
        base, inside = jax.lax.split(both, [width, n], axis=1)
        return scale.astype(base.dtype) * base - back(right, (weight * inside).astype(d.dtype))
    dtype = jnp.promote_types(d.dtype, jnp.float32)
    return jnp.matmul(d, w.astype(d.dtype), preferred_element_type=dtype)


def outer(left: jax.Array, right: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """sum_t left_t right_t^T in `dtype`, multiplied in right's dtype."""
    return jnp.matmul(left.astype(right.dtype).T, right, preferred_element_type=dtype)


_PRODUCTS: dict[str, Callable[[Matrix, jax.Array], jax.Array]] = {"through": through, "back": back}


class Products:
    """The products of one chunk with the matrices of a group, see `through` and `back`, by index.

    known: results of the same calls, which are given out again: as variables, of which each product is the
    derivative by its rows; or, without a group, as they stand. rows: what the matrices were multiplied with.
    """

    def __init__(self, group: tuple[Matrix, ...], known: Rows | None = None) -> None:
        self._group, self._known = group, known
        self.rows: Rows = {}
        self.results: Rows = {}

    def __call__(self, kind: str, index: int, rows: jax.Array) -> jax.Array:
        """kind: "through" or "back"."""
        found = self.results.setdefault((kind, index), [])
        self.rows.setdefault((kind, index), []).append(rows)
        if self._known is None:
            result = _PRODUCTS[kind](self._group[index], rows)
        else:
            result = self._known[kind, index][len(found)]
            if self._group:
                result = _again(kind, result, self._group[index], rows)
        found.append(result)
        return result


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _again(kind: str, result: jax.Array, w: Matrix, rows: jax.Array) -> jax.Array:
    """A known result. w is a constant, and needed for the derivative by `rows` alone.

    Only for `jax.vjp`: a derivative from outside would count what results and rows have in common twice.
    """
    return result


def _keep(kind: str, result: jax.Array, w: Matrix, rows: jax.Array) -> tuple[jax.Array, Any]:
    return result, (w, jnp.zeros((0,), rows.dtype))


def _pull(kind: str, kept: Any, by_result: jax.Array) -> tuple[jax.Array, None, jax.Array]:
    (w, like), transposed = kept, {"through": back, "back": through}[kind]
    return by_result, None, transposed(w, by_result.astype(like.dtype)).astype(like.dtype)


_again.defvjp(_keep, _pull)


def joined(index: int, rows: Rows, by_results: Rows, dtype: jnp.dtype) -> jax.Array:
    """The cotangent of a matrix from all products with it. by_results: the cotangents of their results."""
    at, back_at = ("through", index), ("back", index)
    left, right = by_results[at] + rows.get(back_at, []), rows[at] + by_results.get(back_at, [])
    return outer(jnp.concatenate(left), jnp.concatenate(right).astype(rows[at][0].dtype), dtype)
