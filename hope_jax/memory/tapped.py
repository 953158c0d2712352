"""Matrices whose gradient is asked for as factors: the rows and cotangents of a product, not their outer sum.

The gradient of W in y = x W is x^T dL/dy. Summed chunk by chunk it is, every time, a pass over an array of
W's size for a few rows; kept as (x, dL/dy) it becomes one wide product over the rows of many chunks. The
same factors, token by token, are what a write of a memory W is made of (`mlp_memory.WriteFactors`).

A `Tapped` matrix stands in a parameter tree in place of W. It is held constant, and has two arrays of zeros
that leave its product as it is; the derivative with respect to them is the factors (for the rows, by
definition), so that these come out of a differentiated function the way every gradient does, through scans
and maps. A `Tapped` takes part in one product, and can be differentiated once, in reverse.
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
    """value: W [..., I, O], a constant of what is differentiated. taps: zeros."""

    value: Array
    taps: Factors


Weight: TypeAlias = Array | Tapped


@jax.custom_vjp
def _rows_tapped(x: Array, rows: Array) -> Array:
    del rows
    return x


def _forward(x: Array, rows: Array) -> tuple[Array, Array]:
    del rows
    return x, x


def _backward(x: Array, by_x: Array) -> tuple[Array, Array]:
    return by_x, x


_rows_tapped.defvjp(_forward, _backward)


def multiply(x: Array, w: Weight) -> Array:
    """x [n, I] times w [I, O], in x's dtype."""
    if isinstance(w, Tapped):
        # The product itself is left to JAX, which keeps no copy of W for the backward pass of a scan.
        return _rows_tapped(x, w.taps.rows) @ w.value.astype(x.dtype) + w.taps.cotangents
    return x @ w.astype(x.dtype)


def values(params: PyTree) -> PyTree:
    """The parameters with every tapped matrix as the plain, constant array that it holds."""

    def value(w: Weight) -> Array:
        return w.value if isinstance(w, Tapped) else w

    return jax.tree.map(value, params, is_leaf=lambda node: isinstance(node, Tapped))


def over(function: Callable[..., object], taps: PyTree, *rest: PyTree) -> PyTree:
    """`function` over the leaves of `taps`, and those of trees beside it.

    taps: a tree like the parameters with `Factors` at tapped matrices and None at the other leaves.
    """

    def is_leaf(node: object) -> bool:
        return node is None or isinstance(node, Factors)

    return jax.tree.map(function, taps, *rest, is_leaf=is_leaf)
