"""Inner products of state matrices with each other, and with the outer product of each token.

    gram_ij = <M_i, M_j>,   along_it = x_t^T M_i g_t

On a GPU one kernel reads each matrix once for both.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from hope_jax.kernels.cms_write import blocks
from hope_jax.kernels.on_gpu import with_kernel
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

Matrices: TypeAlias = tuple[jax.Array, ...]
Products: TypeAlias = tuple[jax.Array, jax.Array]


def products(matrices: Matrices, x_ni: jax.Array, g_no: jax.Array, *, known: bool) -> Products:
    """(gram [k, k], along [k, n]) of k matrices [I, O], in their dtype; x_ni, g_no: of any float dtype.
    known: the first matrix' row of `along` is not wanted, and left out."""
    return _FORMS[known](matrices, x_ni, g_no)


def times_transposed(x_ni: jax.Array, m_si: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """x m^T [n, S] in `dtype`, as one product over the last axis of both, which XLA runs without a transposed
    copy."""
    return jax.lax.dot_general(x_ni, m_si, (((1,), (1,)), ((), ())), preferred_element_type=dtype)


def plain(matrices: Matrices, x_ni: jax.Array, g_no: jax.Array, *, known: bool) -> Products:
    """The products one by one."""
    dtype = matrices[0].dtype
    x_ni, g_no = x_ni.astype(dtype), g_no.astype(dtype)

    def along(m: jax.Array) -> jax.Array:
        # Over the narrower side first: the products that reading W_up and pulling back W_down have made.
        if x_ni.shape[1] <= g_no.shape[1]:
            return ((x_ni @ m) * g_no).sum(1)
        return (x_ni * times_transposed(g_no, m, dtype)).sum(1)

    gram = jnp.stack([jnp.stack([jnp.sum(a * b) for b in matrices]) for a in matrices])
    rows = [along(m) for m in matrices[known:]]
    return gram, jnp.stack(rows) if rows else jnp.zeros((0, len(x_ni)), dtype)


def kernel(
    matrices: Matrices, x_ni: jax.Array, g_no: jax.Array, *, known: bool, interpret: bool = False
) -> Products:
    """The Pallas form, for what `blocks.fit`; the rest is left to `plain`."""
    if not blocks.fit(matrices) or known and len(matrices) == 1:
        return plain(matrices, x_ni, g_no, known=known)
    k, n, dtype = len(matrices), len(x_ni), matrices[0].dtype
    (bi, bo), ((x_ni, g_no), rows) = blocks.sides(matrices[0]), blocks.whole_rows(x_ni, g_no)
    at = matrices[0].shape[0] // bi, matrices[0].shape[1] // bo
    tile = pl.BlockSpec((bi, bo), lambda i, j: (i, j))

    def own(*shape: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, *shape), lambda i, j: (i, j, *[0] * len(shape)))

    shapes = (k, k), (k - known, len(x_ni))
    gram, along = pl.pallas_call(
        functools.partial(_body, k, known, rows),
        grid=at,
        in_specs=[
            *[tile] * k,
            pl.BlockSpec((len(x_ni), bi), lambda i, j: (0, i)),
            pl.BlockSpec((len(x_ni), bo), lambda i, j: (0, j)),
        ],
        out_specs=[own(*shape) for shape in shapes],
        out_shape=[jax.ShapeDtypeStruct((*at, *shape), dtype) for shape in shapes],
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name="memory_products",
    )(*matrices, x_ni, g_no)
    return gram.sum((0, 1)), along.sum((0, 1))[:, :n]


def _body(k: int, known: bool, rows: int, *refs: Any) -> None:
    """The part of one block."""
    matrices, (x, g, gram, along) = [m[...] for m in refs[:k]], refs[k:]
    for i, a in enumerate(matrices):
        for j, b in enumerate(matrices):
            gram[i, j] = jnp.sum(a * b)

    def add(at: Any, _: None) -> None:
        here = pl.ds(at * rows, rows)
        x_here, g_here = x[here, :].astype(jnp.float32), g[here, :].astype(jnp.float32)
        for i, m in enumerate(matrices[known:]):
            along[i, here] = jnp.sum(jnp.dot(x_here, m) * g_here, axis=1)

    jax.lax.fori_loop(0, len(x) // rows, add, None)


def _form(known: bool) -> Callable[..., Products]:
    return with_kernel(functools.partial(kernel, known=known), functools.partial(plain, known=known))


_FORMS = {known: _form(known) for known in (False, True)}
