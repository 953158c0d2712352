"""State matrices after a chunk: one linear combination of themselves and of the chunk's outer products.

    M_i <- sum_(j >= i) mix_ij M_j + sum_t weights_it x_t g_t^T

On a GPU one kernel reads and writes each matrix once, in its own place; where no period is written it touches
none of them.
"""

import functools
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from hope_jax.kernels.on_gpu import with_kernel
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

Matrices: TypeAlias = tuple[jax.Array, ...]

BLOCK = 64
"""Sides of the block of a matrix that a program of the kernel updates, and tokens that it adds at once."""


def advance(
    matrices: Matrices,
    mix: jax.Array,
    x_ni: jax.Array,
    weights: jax.Array,
    g_no: jax.Array,
    written: jax.Array,
) -> Matrices:
    """See the module. matrices: k of [I, O]; mix: [k, k], its upper triangle counts; weights: [k, n]; x_ni,
    g_no: of any float dtype. written: bool []; False: mix is the identity and the weights are 0."""
    return _advance(matrices, mix, x_ni, weights, g_no, written)


def plain(
    matrices: Matrices,
    mix: jax.Array,
    x_ni: jax.Array,
    weights: jax.Array,
    g_no: jax.Array,
    written: jax.Array,
) -> Matrices:
    """The outer products of one matrix after the other, then the combination."""
    del written
    dtype = matrices[0].dtype
    x_ni, g_no = x_ni.astype(dtype), g_no.astype(dtype)
    # The barrier keeps XLA:CPU from folding the transpose into the product, which it then runs slower.
    sums = [jax.lax.optimization_barrier((x_ni * w[:, None]).T) @ g_no for w in weights]
    return _combined(mix, matrices, sums)


def kernel(
    matrices: Matrices,
    mix: jax.Array,
    x_ni: jax.Array,
    weights: jax.Array,
    g_no: jax.Array,
    written: jax.Array,
    *,
    in_place: bool = True,
    interpret: bool = False,
) -> Matrices:
    """The Pallas form, for float32 matrices with sides of multiples of 16; others are left to `plain`.

    in_place: the old matrices are not needed any more; else XLA would copy them first.
    """
    inputs, outputs = matrices[0].shape
    bi, bo = (_side(width) for width in (inputs, outputs))
    if matrices[0].dtype != jnp.float32 or min(bi, bo) < 16:
        return plain(matrices, mix, x_ni, weights, g_no, written)
    tokens = pl.cdiv(len(x_ni), 16) * 16 if len(x_ni) < BLOCK else pl.cdiv(len(x_ni), BLOCK) * BLOCK
    rows = min(BLOCK, _side(tokens))
    more = tokens - len(x_ni)
    x_ni, g_no = (jnp.pad(t, ((0, more), (0, 0))) for t in (x_ni, g_no))
    weights = jnp.pad(weights, ((0, 0), (0, more)))
    tile = pl.BlockSpec((bi, bo), lambda i, j: (i, j))
    whole = [pl.BlockSpec(t.shape, lambda i, j, n=t.ndim: (0,) * n) for t in (mix, weights, written[None])]
    k = len(matrices)
    return tuple(
        pl.pallas_call(
            functools.partial(_body, k, rows, in_place),
            grid=(inputs // bi, outputs // bo),
            in_specs=[
                *[tile] * k,
                pl.BlockSpec((tokens, bi), lambda i, j: (0, i)),
                pl.BlockSpec((tokens, bo), lambda i, j: (0, j)),
                *whole,
            ],
            out_specs=[tile] * k,
            out_shape=[jax.ShapeDtypeStruct(m.shape, m.dtype) for m in matrices],
            input_output_aliases={i: i for i in range(k)} if in_place else {},
            compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
            interpret=interpret,
            name="memory_advance",
        )(*matrices, x_ni, g_no, mix, weights, written[None].astype(jnp.int32))
    )


def _combined(mix: Any, matrices: Sequence[jax.Array], sums: Sequence[jax.Array]) -> Matrices:
    """The combination, as scalars times arrays."""
    k = len(matrices)
    return tuple(sum((mix[i, j] * matrices[j] for j in range(i, k)), sums[i]) for i in range(k))


def _side(width: int) -> int:
    """The largest power of two up to `BLOCK` that divides a width."""
    return min(width & -width, BLOCK)


def _body(k: int, rows: int, in_place: bool, *refs: Any) -> None:
    """One block of every matrix."""
    matrices, (x, g, mix, weights, written), new = refs[:k], refs[k:-k], refs[-k:]

    @pl.when((written[0] != 0) | (not in_place))
    def _() -> None:
        def add(at: int, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            here = pl.ds(at * rows, rows)
            x_here, g_here = x[here, :].astype(jnp.float32), g[here, :].astype(jnp.float32)
            return tuple(
                total + _outer(x_here * weights[i, here][:, None], g_here) for i, total in enumerate(sums)
            )

        zeros = tuple(jnp.zeros(m.shape, m.dtype) for m in matrices)
        sums = jax.lax.fori_loop(0, len(x) // rows, add, zeros)
        for place, m in zip(new, _combined(mix, [m[...] for m in matrices], sums), strict=True):
            place[...] = m


def _outer(x: jax.Array, g: jax.Array) -> jax.Array:
    return jax.lax.dot_general(x, g, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)


_advance = with_kernel(kernel, plain, functools.partial(kernel, in_place=False))
