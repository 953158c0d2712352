"""Matrices whose gradient is asked for as factors: the rows and cotangents of a product, not their outer sum.

The gradient of W in y = x W is x^T dL/dy. Summed chunk by chunk it is, every time, a pass over an array of
W's size for a few rows; kept as (x, dL/dy) it becomes one wide product over the rows of many chunks. The
same factors, token by token, are what a write of a memory W is made of (`mlp_memory.WriteFactors`).

A `Tapped` matrix stands in a parameter tree in place of W. It is held constant, and has two arrays of zeros
that leave its product as it is; the derivative with respect to them is the factors (for the rows, by
definition), so that these come out of a differentiated function the way every gradient does, through scans
and maps. A `Tapped` takes part in one product, and can be differentiated once, in reverse.

Where a function with a gradient inside is differentiated, W takes part in two products: y = x W, and
x' = y' W^T in the inner backward pass. Its gradient is x^T dL/dy + (dL/dx')^T y', and a `Tapped` with `outer`
and `pulled` gives the factors of both to the outer derivative, while `taps` are for the inner one.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from hope_jax.types import Array, PyTree


class Factors(NamedTuple):
    """rows: [..., n, I], cotangents: [..., n, O]; the gradient is the sum of rows_n^T cotangents_n over n.
    Before the derivative is taken: zeros of these shapes, in the dtype of the product."""

    rows: Array
    cotangents: Array


class Tapped(NamedTuple):
    """value: W [..., I, O], a constant of what is differentiated. taps: zeros; None: the inner derivative
    asks for none.

    outer, pulled: zeros for the outer derivative of two; None: there is one derivative, which `taps` are for.
    pulled.rows: where the inner backward pass pulls W's cotangent back to. pulled.cotangents: what it pulls.
    """

    value: Array
    taps: Factors | None
    outer: Factors | None = None
    pulled: Factors | None = None


class Measured(NamedTuple):
    """value: W [..., I, O]. square: [...] its squared Frobenius norm, which bounds ask for at every write and
    which is differentiated as a number of its own: no pass over W a write."""

    value: Array
    square: Array


Weight: TypeAlias = Array | Tapped | Measured


def measured(w: Array) -> Measured:
    """W with its squared norm."""
    return Measured(w, jnp.square(w).sum((-2, -1)))


def pull_measured(w: Array, by: Measured) -> Array:
    """The cotangent of W from that of `measured(W)`."""
    return by.value + 2 * by.square[..., None, None] * w


def value(w: Weight) -> Array:
    """The matrix itself."""
    return w.value if isinstance(w, Tapped | Measured) else w


def square(w: Weight) -> Array:
    """[...] the squared Frobenius norm of a matrix, or the square of a bias [O]."""
    return w.square if isinstance(w, Measured) else jnp.square(value(w)).sum()


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


@jax.custom_vjp
def _rows_tapped_outside(x: Array, rows: Array) -> Array:
    """`_rows_tapped` for the outer derivative: the inner one leaves it where it is."""
    del rows
    return x


def _outside_forward(x: Array, rows: Array) -> tuple[Array, Array]:
    return _rows_tapped(x, rows), x


_rows_tapped_outside.defvjp(_outside_forward, _backward)


@jax.custom_vjp
def _pulled_to(x: Array, tap: Array) -> Array:
    """x, whose cotangent in the inner derivative has `tap` added to it."""
    del tap
    return x


def _keep_tap(x: Array, tap: Array) -> tuple[Array, Array]:
    return x, tap


def _add_tap(tap: Array, by_x: Array) -> tuple[Array, None]:
    return by_x + tap, None


_pulled_to.defvjp(_keep_tap, _add_tap)


@jax.custom_vjp
def _pulled_from(y: Array, tap: Array) -> Array:
    """y, whose cotangent in the inner derivative is the outer derivative with respect to `tap`."""
    del tap
    return y


def _tap_rows(tap: Array, by_y: Array) -> tuple[Array, None]:
    return _rows_tapped(by_y, tap), None


_pulled_from.defvjp(_keep_tap, _tap_rows)


def multiply(x: Array, w: Weight) -> Array:
    """x [n, I] times w [I, O], in x's dtype."""
    if not isinstance(w, Tapped):
        return x @ value(w).astype(x.dtype)
    if w.outer is not None:
        x = _rows_tapped_outside(x, w.outer.rows)
    if w.taps is not None:
        x = _rows_tapped(x, w.taps.rows)
    if w.pulled is not None:
        x = _pulled_to(x, w.pulled.rows)
    # The product itself is left to JAX, which keeps no copy of W for the backward pass of a scan.
    y = x @ w.value.astype(x.dtype)
    for factors in (w.outer, w.taps):
        y = y if factors is None else y + factors.cotangents
    return y if w.pulled is None else _pulled_from(y, w.pulled.cotangents)


def values(params: PyTree) -> PyTree:
    """The parameters with every matrix as the plain array that it is; tapped ones are constant."""
    return jax.tree.map(value, params, is_leaf=lambda node: isinstance(node, Tapped | Measured))


def over(function: Callable[..., object], taps: PyTree, *rest: PyTree) -> PyTree:
    """`function` over the leaves of `taps`, and those of trees beside it.

    taps: a tree like the parameters with `Factors` at tapped matrices and None at the other leaves.
    """

    def is_leaf(node: object) -> bool:
        return node is None or isinstance(node, Factors)

    return jax.tree.map(function, taps, *rest, is_leaf=is_leaf)
