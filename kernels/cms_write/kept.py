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
from hope_jax.kernels.on_gpu import with_kernel
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

Kept: TypeAlias = tuple[jax.Array, jax.Array, jax.Array]


def root(square: jax.Array) -> jax.Array:
    """Square root with slope zero at zero, where a norm has none; 0 for what rounding made negative."""
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)


def shrink(size: jax.Array, bound: jax.Array) -> tuple[jax.Array, jax.Array]:
    """min(bound / size, 1), finite with its slopes at size 0 and bound 0; bool: whether it is below 1."""
    # Below the root of the smallest number the slope bound / size^2 would overflow.
    over = size > jnp.maximum(bound, jnp.sqrt(jnp.finfo(size.dtype).tiny))
    return jnp.where(over, bound / jnp.where(over, size, 1), 1), over


def kept(
    square: jax.Array, along_p: jax.Array, gram_pp: jax.Array, applied_p: jax.Array, bound: jax.Array
) -> Kept:
    """What the bound leaves of delta in each period [P], bool [P], whether it was active, and |D| after each
    period [P].

    square: |D_0|^2. along_p: <D_0, w_p>. gram_pp: <w_p, w_q>. applied_p: bool; others change nothing. bound:
    [].
    """
    # On CPUs the loop's own derivative: XLA's compiler there fails on a rule that runs the loop again (in a
    # batched product whose layout it has transposed).
    found: Kept = jax.lax.platform_dependent(
        square, along_p, gram_pp, applied_p, bound, cuda=_kept, default=plain
    )
    return found


def plain(
    square: jax.Array, along_p: jax.Array, gram_pp: jax.Array, applied_p: jax.Array, bound: jax.Array
) -> Kept:
    """`kept` as a loop."""

    def step(
        carry: tuple[jax.Array, jax.Array], xs: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], Kept]:
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


def plain_gradient(primals: tuple[jax.Array, ...], factors_p: jax.Array, sizes_p: jax.Array) -> Any:
    """The cotangents of square, along_p, gram_pp and bound. factors_p, sizes_p: those of the results."""
    square, along_p, gram_pp, applied_p, bound = primals

    def floats(square: jax.Array, along_p: jax.Array, gram_pp: jax.Array, bound: jax.Array) -> Any:
        factors, _, sizes = plain(square, along_p, gram_pp, applied_p, bound)
        return factors, sizes

    return jax.vjp(floats, square, along_p, gram_pp, bound)[1]((factors_p, sizes_p))


def kernel(
    square: jax.Array,
    along_p: jax.Array,
    gram_pp: jax.Array,
    applied_p: jax.Array,
    bound: jax.Array,
    *,
    interpret: bool = False,
) -> Kept:
    """The Pallas form, in float32; other dtypes are left to `plain`."""
    if square.dtype != jnp.float32:
        return plain(square, along_p, gram_pp, applied_p, bound)
    periods, (along_p, gram_pp, applied_p) = len(along_p), _padded(along_p, gram_pp, applied_p)
    row = jax.ShapeDtypeStruct(along_p.shape, along_p.dtype)
    call = _call(_forward, [row] * 3, "memory_kept", interpret)
    factors, hits, sizes = call(square[None], along_p, gram_pp, applied_p, bound[None])
    return factors[:periods], hits[:periods] > 0, sizes[:periods]


def kernel_gradient(
    primals: tuple[jax.Array, ...],
    factors_p: jax.Array,
    sizes_p: jax.Array,
    *,
    interpret: bool = False,
) -> Any:
    """The Pallas form of `plain_gradient`."""
    square, along_p, gram_pp, applied_p, bound = primals
    if square.dtype != jnp.float32:
        return plain_gradient(primals, factors_p, sizes_p)
    periods, (along_p, gram_pp, applied_p) = len(along_p), _padded(along_p, gram_pp, applied_p)
    more = (0, len(along_p) - periods)
    one = jax.ShapeDtypeStruct((1,), square.dtype)
    like = [jax.ShapeDtypeStruct(t.shape, t.dtype) for t in (along_p, gram_pp)]
    call = _call(_backward, [one, *like, one], "memory_kept_gradient", interpret)
    found = call(
        square[None],
        along_p,
        gram_pp,
        applied_p,
        bound[None],
        jnp.pad(factors_p, more),
        jnp.pad(sizes_p, more),
    )
    of_square, of_along, of_gram, of_bound = found
    return of_square[0], of_along[:periods], of_gram[:periods, :periods], of_bound[0]


def _padded(along_p: jax.Array, gram_pp: jax.Array, applied_p: jax.Array) -> tuple[jax.Array, ...]:
    """With periods that change nothing up to a power of two, which the kernels' vectors have to be."""
    more = (0, pl.next_power_of_2(len(along_p)) - len(along_p))
    return jnp.pad(along_p, more), jnp.pad(gram_pp, (more, more)), jnp.pad(applied_p.astype(jnp.int32), more)


def _call(body: Callable[..., None], out_shape: Any, name: str, interpret: bool) -> Callable[..., Any]:
    called: Callable[..., Any] = pl.pallas_call(
        body,
        out_shape=out_shape,
        compiler_params=triton.CompilerParams(num_warps=4),
        interpret=interpret,
        name=name,
    )
    return called


def _at(vector_p: jax.Array, here: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(here, vector_p, 0))


def _step(
    before: tuple[jax.Array, ...], gram_p: jax.Array, here: jax.Array, applied: jax.Array, bound: jax.Array
) -> tuple[jax.Array, ...]:
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

    def step(p: Any, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        s, size, factor, hit, after = _step(carry, gram[p, :], at == p, applied[p], bound[0])
        factors[p], hits[p], sizes[p] = factor, hit.astype(s.dtype), size * factor
        return s * factor**2, after * factor

    jax.lax.fori_loop(0, len(along), step, (square[0], along[...]))


def _backward(
    square: Any, along: Any, gram: Any, applied: Any, bound: Any, factors: Any, sizes: Any, *out: Any
) -> None:
    """Forward again, then in reverse. The gradient of `gram` holds <D + w_p, w_q> until its row is due, the
    first entry of the others' |D + w_p|^2."""
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


_gradient = with_kernel(kernel_gradient, plain_gradient)


@jax.custom_vjp
def _kept(*primals: jax.Array) -> Kept:
    return _traced(*primals)


def _kept_and_primals(*primals: jax.Array) -> tuple[Kept, tuple[jax.Array, ...]]:
    return _traced(*primals), primals


def _pull(primals: tuple[jax.Array, ...], of_results: Kept) -> tuple[Any, ...]:
    of_square, of_along, of_gram, of_bound = _gradient(primals, of_results[0], of_results[2])
    return of_square, of_along, of_gram, None, of_bound


_traced = jax.jit(kernel)
_kept.defvjp(_kept_and_primals, _pull)
