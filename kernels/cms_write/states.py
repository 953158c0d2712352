"""The two passes of a chunk's write over state matrices [I, O]: what is asked of them, and what they become.

    products:  along_it = x_t^T M_i g_t
    advance:   M_i <- sum_(j >= i) mix_ij M_j + sum_t weights_it x_t g_t^T,   gram_ij = <M_i, M_j> of the new

On a GPU each is one kernel that reads a matrix once; `advance` writes it in its own place, and where no
period is written does not touch it. There they take float32 matrices with sides of multiples of 16.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from hope_jax.kernels.on_gpu import with_kernel
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from hope_jax.core.types import Array

Matrices: TypeAlias = tuple[Array, ...]
"""k of [I, O], of one dtype. Tokens x_ni, g_no have any float dtype."""

Update: TypeAlias = tuple[Array, Array, Array]
"""mix [k, k], whose upper triangle counts; weights [k, n]; written, bool []: False: mix is the identity and
the weights are 0."""

BLOCK, LEAST = 64, 16
"""Largest and least side of a block of a matrix, and of the tokens that meet it at once: powers of two."""


def times_transposed(x_ni: Array, m_si: Array, dtype: jnp.dtype) -> Array:
    """x m^T [n, S] in `dtype`, as one product over the last axis of both, which XLA runs without a transposed
    copy."""
    return jax.lax.dot_general(x_ni, m_si, (((1,), (1,)), ((), ())), preferred_element_type=dtype)


def gram(matrices: Matrices) -> Array:
    """Their inner products [k, k]."""
    return jnp.stack([jnp.stack([jnp.sum(a * b) for b in matrices]) for a in matrices])


def products(matrices: Matrices, x_ni: Array, g_no: Array) -> Array:
    """along [k, n]."""
    return _products(matrices, x_ni, g_no)


def advance(
    matrices: Matrices, x_ni: Array, g_no: Array, update: Update, narrow: jnp.dtype | None = None
) -> tuple[Matrices, Array, Array | None]:
    """The matrices after a chunk, their inner products [k, k] (of no meaning where nothing is written), and
    the first of them in the dtype `narrow`, if there is one."""
    return _advance(narrow)(matrices, x_ni, g_no, update)


def plain_products(matrices: Matrices, x_ni: Array, g_no: Array) -> Array:
    """One by one."""
    x_ni, g_no = x_ni.astype(matrices[0].dtype), g_no.astype(matrices[0].dtype)
    # In this order the derivative by g needs no matrix, which by then is written over.
    return jnp.stack([((x_ni @ m) * g_no).sum(1) for m in matrices])


def plain_advance(
    matrices: Matrices, x_ni: Array, g_no: Array, update: Update, narrow: jnp.dtype | None = None
) -> tuple[Matrices, Array, Array | None]:
    """The outer products of one matrix after the other, then the combination."""
    mix, weights, _ = update
    g_no = g_no.astype(weights.dtype)
    # The barrier keeps XLA:CPU from folding the transpose into the product, which it then runs slower.
    x_in = jax.lax.optimization_barrier(x_ni.astype(weights.dtype).T)
    new = _combined(mix, matrices, [x_in @ (w[:, None] * g_no) for w in weights])
    return new, gram(new), None if narrow is None else new[0].astype(narrow)


def products_kernel(matrices: Matrices, x_ni: Array, g_no: Array, *, interpret: bool = False) -> Array:
    """`products` as a kernel, whose blocks each give a part of every sum."""
    if not _fit(matrices):
        return plain_products(matrices, x_ni, g_no)
    n, ((x_ni, g_no), rows) = len(x_ni), _whole_rows(x_ni, g_no)
    body, out = functools.partial(_products_body, len(matrices), rows), [_part(matrices, len(x_ni))]
    (along,) = _call(body, "memory_products", matrices, x_ni, g_no, (), out, {}, interpret)
    return along.sum((0, 1))[:, :n]


def advance_kernel(
    matrices: Matrices,
    x_ni: Array,
    g_no: Array,
    update: Update,
    narrow: jnp.dtype | None = None,
    *,
    keep: bool = False,
    interpret: bool = False,
) -> Any:
    """`advance` as a kernel that writes over the matrices. keep: it returns its arguments, too, with a copy
    of the matrices, for what it costs to write one."""
    given = matrices, x_ni, g_no, update
    if not _fit(matrices):
        plain = plain_advance(*given, narrow)
        return (plain, given) if keep else plain
    k, (mix, weights, written) = len(matrices), update
    (x_ni, g_no, weights), rows = _whole_rows(x_ni, g_no, weights.T)
    shapes = [jax.ShapeDtypeStruct(m.shape, m.dtype) for m in matrices * (1 + keep)]
    if narrow:
        shapes.append(jax.ShapeDtypeStruct(matrices[0].shape, narrow))
    parts, *new = _call(
        functools.partial(_advance_body, k, rows, keep),
        "memory_advance",
        matrices,
        x_ni,
        g_no,
        (mix, weights.T, written[None].astype(jnp.int32)),
        [_part(matrices, k), *((_tile(matrices[0]), shape) for shape in shapes)],
        {i: i + 1 for i in range(k)},
        interpret,
    )
    found = tuple(new[:k]), parts.sum((0, 1)), new[-1] if narrow else None
    return (found, (tuple(new[k : 2 * k]), *given[1:])) if keep else found


def _combined(mix: Any, matrices: Sequence[Array], sums: Sequence[Array]) -> Matrices:
    """The combination, as scalars times arrays."""
    k = len(matrices)
    return tuple(sum((mix[i, j] * matrices[j] for j in range(i, k)), sums[i]) for i in range(k))


def _sides(matrix: Array) -> tuple[int, ...]:
    """Of a block: the largest powers of two up to `BLOCK` that divide the matrix."""
    return tuple(min(width & -width, BLOCK) for width in matrix.shape)


def _fit(matrices: Matrices) -> bool:
    return matrices[0].dtype == jnp.float32 and min(_sides(matrices[0])) >= LEAST


def _grid(matrix: Array) -> tuple[int, ...]:
    return tuple(width // side for width, side in zip(matrix.shape, _sides(matrix), strict=True))


def _tile(matrix: Array) -> pl.BlockSpec:
    return pl.BlockSpec(_sides(matrix), lambda i, j: (i, j))


def _part(matrices: Matrices, columns: int) -> tuple[pl.BlockSpec, jax.ShapeDtypeStruct]:
    """What each block gives of sums [k, columns] over all blocks."""
    shape = len(matrices), columns
    spec = pl.BlockSpec((None, None, *shape), lambda i, j: (i, j, 0, 0))
    return spec, jax.ShapeDtypeStruct((*_grid(matrices[0]), *shape), matrices[0].dtype)


def _whole_rows(*arrays: Array) -> tuple[tuple[Array, ...], int]:
    """Tokens [n, ...] with zeros up to a whole number of blocks, and the tokens of one."""
    tokens = len(arrays[0])
    more = -tokens % (BLOCK if tokens >= BLOCK else LEAST)
    padded = tuple(jnp.pad(t, ((0, more), *[(0, 0)] * (t.ndim - 1))) for t in arrays)
    return padded, min((tokens + more) & -(tokens + more), BLOCK)


def _call(
    body: Callable[..., None],
    name: str,
    matrices: Matrices,
    x_ni: Array,
    g_no: Array,
    scalars: tuple[Array, ...],
    out: Sequence[tuple[pl.BlockSpec, jax.ShapeDtypeStruct]],
    aliases: dict[int, int],
    interpret: bool,
) -> Sequence[Array]:
    """The body over blocks of the matrices, each with its columns of the tokens and all of the scalars."""
    bi, bo = _sides(matrices[0])
    called: Sequence[Array] = pl.pallas_call(
        body,
        grid=_grid(matrices[0]),
        in_specs=[
            *[_tile(matrices[0])] * len(matrices),
            pl.BlockSpec((len(x_ni), bi), lambda i, j: (0, i)),
            pl.BlockSpec((len(x_ni), bo), lambda i, j: (0, j)),
            *(pl.BlockSpec(t.shape, lambda i, j, n=t.ndim: (0,) * n) for t in scalars),
        ],
        out_specs=[spec for spec, _ in out],
        out_shape=[shape for _, shape in out],
        input_output_aliases=aliases,
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name=name,
    )(*matrices, x_ni, g_no, *scalars)
    return called


def _over_rows(x: Any, g: Any, rows: int, add: Callable[..., Any], start: Any) -> Any:
    """`start` after `add` of (it, where some tokens are, their x and g in float32), until all are added."""

    def some(at: Any, carried: Any) -> Any:
        here = pl.ds(at * rows, rows)
        return add(carried, here, x[here, :].astype(jnp.float32), g[here, :].astype(jnp.float32))

    return jax.lax.fori_loop(0, len(x) // rows, some, start)


def _products_body(k: int, rows: int, *refs: Any) -> None:
    """The part of one block."""
    matrices, (x, g, along) = [m[...] for m in refs[:k]], refs[k:]

    def add(_: None, here: Any, x_here: Array, g_here: Array) -> None:
        for i, m in enumerate(matrices):
            along[i, here] = jnp.sum(jnp.dot(x_here, m) * g_here, axis=1)

    _over_rows(x, g, rows, add, None)


def _advance_body(k: int, rows: int, keep: bool, *refs: Any) -> None:
    """One block of every matrix."""
    matrices, (x, g, mix, weights, written, gram, *out) = refs[:k], refs[k:]
    kept, rounded = out[k : k + k * keep], out[k + k * keep :]
    for place, m in zip(kept, matrices, strict=False):
        place[...] = m[...]

    @pl.when(written[0] != 0)
    def _() -> None:
        def add(sums: Matrices, here: Any, x_here: Array, g_here: Array) -> Matrices:
            rows = (weights[i, here][:, None] * g_here for i in range(k))
            return tuple(total + jnp.dot(x_here.T, w) for total, w in zip(sums, rows, strict=True))

        sums = _over_rows(x, g, rows, add, tuple(jnp.zeros(m.shape, m.dtype) for m in matrices))
        found = _combined(mix, [m[...] for m in matrices], sums)
        for place, m in zip([*out[:k], *rounded], [*found, found[0]], strict=False):
            place[...] = m.astype(place.dtype)
        for i, j in itertools.product(range(k), range(k)):
            gram[i, j] = jnp.sum(found[i] * found[j])

    for narrow in rounded:

        @pl.when(written[0] == 0)
        def _(narrow: Any = narrow) -> None:
            narrow[...] = matrices[0][...].astype(narrow.dtype)


@functools.cache
def _advance(narrow: jnp.dtype | None) -> Callable[..., tuple[Matrices, Array, Array | None]]:
    kernel, plain = (functools.partial(form, narrow=narrow) for form in (advance_kernel, plain_advance))
    return with_kernel(kernel, plain, functools.partial(kernel, keep=True))


_products = with_kernel(products_kernel, plain_products)
