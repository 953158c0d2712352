"""Matrices whose gradient is asked for as factors: the rows and cotangents of a product, not their outer sum.

The gradient of W in y = x W is x^T dL/dy. Summed chunk by chunk it is, every time, a pass over an array of
W's size for a few rows; kept as (x, dL/dy) it becomes one wide product over the rows of many chunks. The
same factors, token by token, are what a write of a memory W is made of (`mlp_memory.WriteFactors`).

A `Tapped` matrix stands in a parameter tree in place of W. It is held constant, and has two arrays of zeros
that no product reads; the derivative with respect to them is *defined* as the factors, so that they leave a
differentiated function the way every gradient does, through scans and maps. A `Tapped` takes part in one
product, and can be differentiated once, in reverse.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax

from hope_jax.types import Array, PyTree


class Factors(NamedTuple):
    """rows: [..., n, I], cotangents: [..., n, O]; the gradient is the sum of rows_n^T cotangents_n over n.
    Before the derivative is taken: zeros of these shapes, in the dtype of the product."""

    rows: Array
    cotangents: Array


class Tapped(NamedTuple):
    """value: W [..., I, O]. taps: zeros."""

    value: Array
    taps: Factors


Weight: TypeAlias = Array | Tapped


@jax.custom_vjp
def _tapped_product(x: Array, w: Array, taps: Factors) -> Array:
    del taps
    return x @ w


def _forward(x: Array, w: Array, taps: Factors) -> tuple[Array, tuple[Array, Array]]:
    del taps
    return x @ w, (x, w)


def _backward(kept: tuple[Array, Array], by_y: Array) -> tuple[Array, None, Factors]:
    x, w = kept
    return by_y @ w.T, None, Factors(x, by_y)


_tapped_product.defvjp(_forward, _backward)


def multiply(x: Array, w: Weight) -> Array:
    """x [n, I] times w [I, O], in x's dtype."""
    if isinstance(w, Tapped):
        return _tapped_product(x, jax.lax.stop_gradient(w.value).astype(x.dtype), w.taps)
    return x @ w.astype(x.dtype)


def values(params: PyTree) -> PyTree:
    """The parameters with every tapped matrix as the plain, constant array that it holds."""

    def value(w: Weight) -> Array:
        return jax.lax.stop_gradient(w.value) if isinstance(w, Tapped) else w

    return jax.tree.map(value, params, is_leaf=lambda node: isinstance(node, Tapped))


def over(function: Callable[..., object], taps: PyTree, *rest: PyTree) -> PyTree:
    """`function` over the leaves of `taps`, and those of trees beside it.

    taps: a tree like the parameters with `Factors` at tapped matrices and None at the other leaves.
    """

    def is_leaf(node: object) -> bool:
        return node is None or isinstance(node, Factors)

    return jax.tree.map(function, taps, *rest, is_leaf=is_leaf)
