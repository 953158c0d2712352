"""What the bound on delta leaves of it, period by period: the one recursion of a chunk's write.

With s = |D|^2 and a_q = <D, w_q> of the bounded writes w_q to come, period p does

    s <- s + 2 a_p + <w_p, w_p>,   f_p = bound / sqrt(s) if sqrt(s) > bound, else 1,
    s <- f_p^2 s,   a_q <- f_p (a_q + <w_p, w_q>).

On a GPU a loop of such steps would be several kernels a step, so both it and its gradient are one kernel.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from hope_jax.core.types import Array

Kept: TypeAlias = tuple[Array, Array, Array]
Primals: TypeAlias = tuple[Array, ...]


def root(square: Array) -> Array:
    """Square root with slope zero at zero, where a norm has none; 0 for what rounding made negative."""
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)


def shrink(size: Array, bound: Array) -> tuple[Array, Array]:
    """min(bound / size, 1), finite with its slopes at size 0 and bound 0; bool: whether it is below 1."""
    # Below the root of the smallest number the slope bound / size^2 would overflow.
    over = size > jnp.maximum(bound, jnp.sqrt(jnp.finfo(size.dtype).tiny))
    return jnp.where(over, bound / jnp.where(over, size, 1), 1), over


def kept(square: Array, along_p: Array, gram_pp: Array, applied_p: Array, bound: Array) -> Kept:
    """What the bound leaves of delta in each period [P], bool [P], whether it was active, and |D| after each
    period [P].

    square: |D_0|^2. along_p: <D_0, w_p>. gram_pp: <w_p, w_q>. applied_p: bool; others change nothing. bound:
    [].
    """
    primals = square, along_p, gram_pp, applied_p, bound
    if square.dtype != jnp.float32:
        return plain(*primals)
    # Elsewhere the loop's own derivative: XLA:CPU fails on a rule that runs the loop again (in a batched
    # product whose layout it has transposed).
    found: Kept = jax.lax.platform_dependent(*primals, cuda=_kept, default=plain)
    return found


def plain(square: Array, along_p: Array, gram_pp: Array, applied_p: Array, bound: Array) -> Kept:
    """`kept` as a loop."""

    def step(carry: tuple[Array, Array], xs: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], Kept]:
        (square, along_p), (p, gram_p, applied) = carry, xs
        square = square + 2 * along_p[p] + gram_p[p]
        size = root(square)
        factor, hit = shrink(size, bound)
        factor = jnp.where(applied, factor, 1)
        after = square * factor**2, (along_p + gram_p) * factor
        return after, (factor, hit & applied, size * factor)

    each = (jnp.arange(applied_p.shape[0]), gram_pp, applied_p)
    found: Kept = jax.lax.scan(step, (square, along_p), each)[1]
    return found


def kernel(*primals: Array, interpret: bool = False) -> Kept:
    """The Pallas form, in float32."""
    given, (row, _, _), periods = _as_blocks(primals)
    factors, hits, sizes = _call(_forward, [row] * 3, "memory_kept", interpret)(*given)
    return factors[:periods], hits[:periods] > 0, sizes[:periods]


def kernel_gradient(primals: Primals, *cotangents: Array, interpret: bool = False) -> Primals:
    """The cotangents of square, along_p, gram_pp and bound, from those of the factors and sizes [P]."""
    given, (row, square, one), periods = _as_blocks(primals)
    padded = (jnp.pad(t, (0, len(given[1]) - periods)) for t in cotangents)
    shapes = [one, row, square, one]
    found = _call(_backward, shapes, "memory_kept_gradient", interpret)(*given, *padded)
    return found[0][0], found[1][:periods], found[2][:periods, :periods], found[3][0]


def _as_blocks(primals: Primals) -> tuple[Primals, tuple[jax.ShapeDtypeStruct, ...], int]:
    """The arguments with periods that change nothing up to a power of two, as the kernels' vectors have to
    be; the shapes of a row, a square and a scalar; and the number of periods."""
    square, along_p, gram_pp, applied_p, bound = primals
    periods = len(along_p)
    size = pl.next_power_of_2(periods)
    more = (0, size - periods)
    on = jnp.pad(applied_p.astype(jnp.int32), more)
    given = square[None], jnp.pad(along_p, more), jnp.pad(gram_pp, (more, more)), on, bound[None]
    return given, tuple(jax.ShapeDtypeStruct(s, square.dtype) for s in ((size,), (size, size), (1,))), periods


def _call(body: Callable[..., None], out_shape: Any, name: str, interpret: bool) -> Callable[..., Any]:
    params = triton.CompilerParams(num_warps=4)
    called: Callable[..., Any] = pl.pallas_call(
        body, out_shape=out_shape, compiler_params=params, interpret=interpret, name=name
    )
    return called


def _at(vector_p: Array, here: Array) -> Array:
    return jnp.sum(jnp.where(here, vector_p, 0))


def _step(
    before: tuple[Array, ...], gram_p: Array, here: Array, applied: Array, bound: Array
) -> tuple[Array, ...]:
    """|D + w_p|^2, its root, the factor, whether the bound acts, and <D + w_p, w_q>. before: |D|^2 and <D,
    w_q>."""
    square, along_p = before
    square = square + 2 * _at(along_p, here) + _at(gram_p, here)
    size = root(square)
    factor, hit = shrink(size, bound)
    hit &= applied > 0
    return square, size, jnp.where(hit, factor, 1), hit, along_p + gram_p


def _forward(square: Any, along: Any, gram: Any, applied: Any, bound: Any, *out: Any) -> None:
    factors, hits, sizes = out
    at = jax.lax.broadcasted_iota(jnp.int32, along.shape, 0)

    def step(p: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        s, size, factor, hit, after = _step(carry, gram[p, :], at == p, applied[p], bound[0])
        factors[p], hits[p], sizes[p] = factor, hit.astype(s.dtype), size * factor
        return s * factor**2, after * factor

    jax.lax.fori_loop(0, len(along), step, (square[0], along[...]))


def _backward(
    square: Any, along: Any, gram: Any, applied: Any, bound: Any, factors: Any, sizes: Any, *out: Any
) -> None:
    """Forward again, then in reverse. The gradient of `gram` holds <D + w_p, w_q> until its row is due."""
    of_square, of_along, of_gram, of_bound = out
    periods, limit = len(along), bound[0]
    at = jax.lax.broadcasted_iota(jnp.int32, along.shape, 0)

    def forth(p: Any, carry: tuple[Any, ...]) -> tuple[Any, ...]:
        s, _, factor, _, after = _step(carry[:2], gram[p, :], at == p, applied[p], limit)
        of_gram[p, :] = after
        return s * factor**2, after * factor, jnp.where(at == p, s, carry[2])

    squares = jax.lax.fori_loop(0, periods, forth, (square[0], along[...], jnp.zeros_like(along[...])))[2]

    def back(i: Any, carry: tuple[Any, ...]) -> tuple[Any, ...]:
        to_square, to_along, to_bound = carry
        p = periods - 1 - i
        here, after = at == p, of_gram[p, :]
        s = _at(squares, here)
        size = root(s)
        factor, hit = shrink(size, limit)
        hit &= applied[p] > 0
        factor = jnp.where(hit, factor, 1)
        to_factor = factors[p] + sizes[p] * size + 2 * s * factor * to_square + jnp.sum(to_along * after)
        to_factor = jnp.where(hit, to_factor, 0)
        safe = jnp.where(size > 0, size, 1)
        to_size = sizes[p] * factor - to_factor * limit / (safe * safe)
        to_square = factor**2 * to_square + jnp.where(size > 0, 0.5 * to_size / safe, 0)
        to_along = factor * to_along
        of_gram[p, :] = to_along + jnp.where(here, to_square, 0)
        return to_square, to_along + jnp.where(here, 2 * to_square, 0), to_bound + to_factor / safe

    zero = jnp.zeros_like(square[0])
    found = jax.lax.fori_loop(0, periods, back, (zero, jnp.zeros_like(along[...]), zero))
    of_square[0], of_along[...], of_bound[0] = found


_once, _gradient = jax.jit(kernel), jax.jit(kernel_gradient)
"""Traced once for each shape."""


@jax.custom_vjp
def _kept(*primals: Array) -> Kept:
    return _once(*primals)


def _pull(primals: Primals, of_results: Kept) -> tuple[Any, ...]:
    of_square, of_along, of_gram, of_bound = _gradient(primals, of_results[0], of_results[2])
    return of_square, of_along, of_gram, None, of_bound


_kept.defvjp(lambda *primals: (_once(*primals), primals), _pull)
