"""A pass over many chunks: each is read with what those before it wrote, and written; with its own backward.

Backward. Chunk c of a matrix W reads y = W x with several x and writes W' = a W - l^T r (a: the decay of the
chunk; l, r: rows). With G' = dL/dW' the cotangents are

    dL/dl = -r G'^T,   dL/dr = -l G',   dL/d(log a) = a <G', W>,   G = a G' + sum over products of ybar^T x,

all of them products with few rows but <G', W>, which is one number. It needs no pass over W and G' either:
from the recursions of W and G, with s = <G, W> at a chunk's start and s' = <G', W'> at its end,

    a <G', W> = s' - sum of l * dL/dl,   s = a <G', W> + sum over products of ybar * y.

Saved are the results of all products and, at the start of every block, the weights. The weights before a
chunk are those at its block's start and what the chunks between wrote, as factors (`products.Factored`): no
matrix is computed again. What remains, elementwise or C x C, JAX differentiates (`products.Replayed`).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from hope_jax.kernels.self_mod import block, change
from hope_jax.kernels.self_mod.before import Before, at_chunk, before_each
from hope_jax.kernels.self_mod.chunked import Across, Factors, Rule, Tokens, advance, factors_of_chunk, read
from hope_jax.kernels.self_mod.examples import in_turn
from hope_jax.kernels.self_mod.group import Layout, of_matrices
from hope_jax.kernels.self_mod.products import (
    Group,
    Products,
    Recorded,
    Repeated,
    Replayed,
    back,
    joined,
    once_done,
    outer,
    through,
    wide,
)

PyTree: TypeAlias = Any

Make: TypeAlias = Callable[[PyTree, dict[str, jax.Array], PyTree], tuple[PyTree, Tokens]]
"""(theta, what the memories read at a chunk's tokens, the tokens' other inputs) -> outputs, and the stream
that the chunk is written with."""

BLOCK_TOKENS = 128
"""Tokens between saved weights. The longer, the less is saved, and the more factors stand for a matrix."""

WRITE_TOKENS = 32
"""Tokens between writes to wide matrices (`block`). The longer, the fewer passes over them, and the more
factors stand for a matrix."""

WIDE = 256
"""Width from which matrices are wide: a pass over one costs more than a product with a few factors, and on
CPU the examples of a batch go one after the other (`examples.in_turn`). Narrower ones stay in the caches."""


class Pass(NamedTuple):
    """The constants of a pass. make: a pure function that closes over no array. chunk: tokens (C)."""

    make: Make
    layout: Layout
    rule: Rule
    chunk: int


class Inputs(NamedTuple):
    """x: [n, D], what the memories read. other: further inputs of `make`, leaves [n, ...]."""

    x: jax.Array
    other: PyTree


def sweep(constants: Pass, group: Group, theta: PyTree, inputs: Inputs) -> tuple[Group, PyTree, jax.Array]:
    """Reads and writes whole chunks in order, n of a multiple of `chunk` tokens.

    theta: what `make` is differentiated by besides. Returns the group after the last write, the outputs of
    `make` with leaves [n, ...], and the statistic [chunks, M] Frobenius norm of the change of each of the
    matrices (`change.norms`), which has no gradient.
    """
    chunks = inputs.x.shape[0] // constants.chunk
    inner = min(chunks, max(1, BLOCK_TOKENS // constants.chunk))
    whole = chunks // inner * inner if inner else 0
    outs, norms, at = [], [], 0
    for count, per_block in ((whole, inner), (chunks - whole, chunks - whole)):
        if not count:
            continue
        size = (count // per_block, per_block, constants.chunk)
        end = at + count * constants.chunk
        part = jax.tree.map(lambda t: t[at:end].reshape(*size, *t.shape[1:]), inputs)  # noqa: B023
        group, made, by_block = _blocks(constants, inputs.x.shape[1])(group, theta, part)
        outs.append(jax.tree.map(lambda t: t.reshape(-1, *t.shape[3:]), made))
        norms.append(by_block.reshape(count, -1))
        at = end
    return group, jax.tree.map(lambda *t: jnp.concatenate(t), *outs), jnp.concatenate(norms)


class _Measured(NamedTuple):
    """A group, and the squares of its weights (() with momentum)."""

    group: Group
    squares: change.Squares


def _step(
    constants: Pass, products: Products, theta: PyTree, inputs: Inputs
) -> tuple[PyTree, tuple[Factors, Across]]:
    """Outputs and write of one chunk."""
    reads = read(products, constants.layout, inputs.x)
    outs, tokens = constants.make(theta, reads, inputs.other)
    return outs, factors_of_chunk(products, constants.layout, tokens, constants.rule)


_Made: TypeAlias = tuple[PyTree, jax.Array, list[jax.Array]]
"""Outputs, the norms of the change, and results of products, by chunk."""


def _read_and_write(
    constants: Pass, theta: PyTree, start: _Measured, inputs: Inputs
) -> tuple[_Measured, _Made]:
    """Chunks in order, leaves of the inputs [chunks, C, ...]."""
    chunks = inputs.x.shape[0]
    together = min(chunks, WRITE_TOKENS // constants.chunk)
    if together < 2 or inputs.x.shape[-1] < WIDE or start.group.momentum is not None:
        return jax.lax.scan(partial(_dense, constants, theta), start, inputs)
    whole = chunks // together * together
    several = partial(_factored, constants, theta)
    split = jax.tree.map(lambda t: t[:whole].reshape(-1, together, *t.shape[1:]), inputs)
    end, made = jax.lax.scan(several, start, split)
    made = jax.tree.map(lambda t: t.reshape(-1, *t.shape[2:]), made)
    if whole < chunks:
        end, last = several(end, jax.tree.map(lambda t: t[whole:], inputs))
        made = jax.tree.map(lambda *t: jnp.concatenate(t), made, last)
    return end, made


def _dense(constants: Pass, theta: PyTree, at: _Measured, inputs: Inputs) -> tuple[_Measured, _Made]:
    """One chunk, written to the matrices."""
    products = Recorded(at.group)
    outs, (factors, across) = _step(constants, products, theta, inputs)
    ready = once_done(factors.log_total, products.results)
    new = advance(at.group, factors._replace(log_total=ready))
    if new.momentum is None:
        changes, after = change.by_factors(factors, across, at.squares)
    else:
        changes, after = change.squares(jax.tree.map(jnp.subtract, new.weights, at.group.weights)), ()
    return _Measured(new, after), (outs, change.norms(constants.layout, changes), products.results)


def _factored(constants: Pass, theta: PyTree, start: _Measured, inputs: Inputs) -> tuple[_Measured, _Made]:
    """A few chunks, written to the matrices together. What they read is known: one product for all."""
    group, x = start.group, inputs.x
    read_first = through(group.weights.rows, x.reshape(-1, x.shape[-1])).reshape(*x.shape[:2], -1)

    def chunk(
        now: tuple[block.Pending, change.Squares], inputs: tuple[Inputs, jax.Array]
    ) -> tuple[tuple[block.Pending, change.Squares], _Made]:
        pending, squares = now
        products = Recorded(block.matrices_now(group, pending), inputs[1])
        outs, (factors, across) = _step(constants, products, theta, inputs[0])
        changes, squares = change.by_factors(factors, across, squares)
        made = outs, change.norms(constants.layout, changes), products.results
        return (block.entered(pending, factors), squares), made

    first = jax.tree.map(lambda t: t[0], inputs)
    shapes = jax.eval_shape(lambda: _step(constants, Products(group), theta, first))[1][0]
    now = block.nothing(group, shapes, len(x)), start.squares
    (pending, squares), made = jax.lax.scan(chunk, now, (inputs, read_first))
    return _Measured(block.written(group, pending), squares), made


def _blocks(
    constants: Pass, width: int
) -> Callable[[Group, PyTree, Inputs], tuple[Group, PyTree, jax.Array]]:
    """The pass over blocks of chunks, leaves of the inputs [blocks, chunks, C, ...], with its derivative."""

    def saved(theta: PyTree, at: _Measured, inputs: Inputs) -> tuple[_Measured, tuple[Any, Group]]:
        end, made = _read_and_write(constants, theta, at, inputs)
        return end, (made, at.group)

    @jax.custom_vjp
    def run(group: Group, theta: PyTree, inputs: Inputs) -> tuple[Group, PyTree, jax.Array]:
        return over_blocks(group, theta, inputs)[0]

    def over_blocks(group: Group, theta: PyTree, inputs: Inputs) -> tuple[Any, Any]:
        at = _Measured(group, () if group.momentum is not None else change.squares(group.weights))
        (end, _), ((outs, norms, results), starts) = jax.lax.scan(partial(saved, theta), at, inputs)
        return (end, outs, norms), (starts, results, end)

    def forward(group: Group, theta: PyTree, inputs: Inputs) -> tuple[Any, Any]:
        out, saved = over_blocks(group, theta, inputs)
        return out, (*saved, theta, inputs)

    def backward(kept: Any, cotangents: tuple[Group, PyTree, jax.Array]) -> tuple[Group, PyTree, Inputs]:
        starts, results, end, theta, inputs = kept
        by_end, by_outs, _ = cotangents
        along = _along(by_end.weights.matrices(), end.weights.matrices())
        zero = jax.tree.map(jnp.zeros_like, theta)
        (by_start, _, by_theta), by_inputs = jax.lax.scan(
            partial(_block_backward, constants, theta),
            (by_end, along, zero),
            (starts, results, inputs, by_outs),
            reverse=True,
        )
        return by_start, by_theta, by_inputs

    if width >= WIDE:
        over_blocks, backward = in_turn(over_blocks), in_turn(backward)
    run.defvjp(forward, backward)
    return run


_Carried: TypeAlias = tuple[Group, jax.Array, PyTree]
"""Of the backward pass: G of the group, s, and what `theta` has gathered."""


def _block_backward(
    constants: Pass, theta: PyTree, carried: _Carried, xs: tuple[Group, list[jax.Array], Inputs, PyTree]
) -> tuple[_Carried, Inputs]:
    start, results, inputs, by_outs = xs

    def again(results: list[jax.Array], inputs: Inputs) -> Factors:
        return _step(constants, Repeated(start, results), theta, inputs)[1][0]

    shared, own = before_each(start, jax.lax.map(lambda chunk: again(*chunk), (results, inputs)))
    step = partial(_chunk_backward, constants, theta, shared)
    return jax.lax.scan(step, carried, (own, results, inputs, by_outs), reverse=True)


def _chunk_backward(
    constants: Pass,
    theta: PyTree,
    shared: Before,
    carried: _Carried,
    xs: tuple[Before, list[jax.Array], Inputs, PyTree],
) -> tuple[_Carried, Inputs]:
    by_group, along, gathered = carried
    own, results, inputs, by_outs = xs
    matrices = at_chunk(shared, own)
    keys: list[Any] = []

    def rest(
        results: list[jax.Array], theta: PyTree, inputs: Inputs
    ) -> tuple[tuple[PyTree, Factors], list[jax.Array]]:
        products = Replayed(matrices, results)
        outs, (factors, _) = _step(constants, products, theta, inputs)
        keys.extend(products.keys)
        return (outs, factors), products.rows

    (_, factors), pull, rows = jax.vjp(rest, results, theta, inputs, has_aux=True)
    buffers = tuple(m for (kind, _), m in matrices.items() if kind == "momentum")
    by_factors, by_start, along = _advance_backward(buffers, factors, by_group, along)
    by_results, by_theta, by_inputs = pull((by_outs, by_factors))
    uses = joined(keys, rows, by_results)
    for (kind, index), (left, right) in uses.items():
        stacked = getattr(by_start, kind)
        of_kind = list(stacked.matrices())
        of_kind[index] = of_kind[index] + outer(left, right, of_kind[index].dtype)
        by_start = by_start._replace(**{kind: of_matrices(tuple(of_kind))})
    for (key, _), result, cotangent in zip(keys, results, by_results, strict=True):
        if key[0] == "weights":
            along = along + jnp.sum(wide(cotangent) * wide(result)).astype(along.dtype)
    gathered = jax.tree.map(jnp.add, gathered, by_theta)
    return (by_start, along, gathered), by_inputs


def _advance_backward(
    buffers: tuple[jax.Array, ...], factors: Factors, by_new: Group, along: jax.Array
) -> tuple[Factors, Group, jax.Array]:
    """The cotangents of a chunk's factors and, of the group at its start, what does not come from its
    products; and a <G', W>. buffers: at its start, of the momentum."""
    weights, momentum = by_new
    by_left = [-through(g, r) for g, r in zip(weights.matrices(), factors.right, strict=True)]
    by_right = [
        -back(g, left, r.dtype).astype(r.dtype)
        for g, left, r in zip(weights.matrices(), factors.left, factors.right, strict=True)
    ]
    decayed = along - sum(
        (jnp.sum(left * by) for left, by in zip(factors.left, by_left, strict=True)), jnp.zeros_like(along)
    )
    total = once_done(jnp.exp(factors.log_total), [*by_left, *by_right])
    by_weights = tuple(total.astype(g.dtype) * g for g in weights.matrices())
    if momentum is None or factors.start is None:
        by_factors = factors._replace(
            log_total=decayed.astype(factors.log_total.dtype), left=tuple(by_left), right=tuple(by_right)
        )
        return by_factors, Group(of_matrices(by_weights), None), decayed
    return _with_momentum(buffers, factors, by_new, decayed, by_left, by_right, by_weights)


def _with_momentum(
    before: tuple[jax.Array, ...],
    factors: Factors,
    by_new: Group,
    decayed: jax.Array,
    by_left: list[jax.Array],
    by_right: list[jax.Array],
    by_weights: tuple[jax.Array, ...],
) -> tuple[Factors, Group, jax.Array]:
    """The buffers' part: W' = .. - start m, m' = keep m + given^T r."""
    assert by_new.momentum is not None
    assert factors.start is not None and factors.keep is not None and factors.given is not None
    by_buffers = by_new.momentum.matrices()
    by_start = -_along(by_new.weights.matrices(), before)
    start, keep = factors.start, factors.keep
    by_given = tuple(through(b, r) for b, r in zip(by_buffers, factors.right, strict=True))
    by_right = [
        by + back(b, given, r.dtype).astype(r.dtype)
        for by, b, given, r in zip(by_right, by_buffers, factors.given, factors.right, strict=True)
    ]
    by_before = tuple(
        keep.astype(b.dtype) * b - start.astype(b.dtype) * g
        for b, g in zip(by_buffers, by_new.weights.matrices(), strict=True)
    )
    decayed = decayed - start.astype(decayed.dtype) * by_start
    by_factors = Factors(
        log_total=decayed.astype(factors.log_total.dtype),
        left=tuple(by_left),
        right=tuple(by_right),
        start=by_start.astype(start.dtype),
        keep=_along(by_buffers, before).astype(keep.dtype),
        given=by_given,
    )
    return by_factors, Group(of_matrices(by_weights), of_matrices(by_before)), decayed


def _along(a: tuple[jax.Array, ...], b: tuple[jax.Array, ...]) -> jax.Array:
    """Inner product over all matrices, in at least float32."""
    zero = jnp.zeros((), jnp.promote_types(a[0].dtype, jnp.float32))
    return sum((jnp.vdot(wide(x), wide(y)) for x, y in zip(a, b, strict=True)), zero)
