"""A pass over many chunks: each is read with what those before it wrote, and written; with its own backward.

Backward. Chunk c of a matrix W reads y = W x with several x and writes W' = a W - l^T r (a: the decay of the
chunk; l, r: rows). With G' = dL/dW' the cotangents are

    dL/dl = -r G'^T,   dL/dr = -l G',   dL/d(log a) = a <G', W>,   G = a G' + sum over products of ybar^T x,

all of them products with few rows but <G', W>, which is one number. It needs no pass over W and G' either:
from the recursions of W and G, with s = <G, W> at a chunk's start and s' = <G', W'> at its end,

    a <G', W> = s' - sum of l * dL/dl,   s = a <G', W> + sum over products of ybar * y.

Saved are the results of all products and, at the start of every block, the weights W_0. Before chunk c

    W_c = a_0 .. a_{c-1} W_0 - sum over chunks j < c of a_{j+1} .. a_{c-1} l_j^T r_j,

as factors beside W_0 (`group.Written`): no matrix is computed again. What remains, elementwise or C x C, JAX
differentiates. With momentum, or where examples share a group, it differentiates all of it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from hope_jax.kernels.self_mod.chunked import Factors, Rule, Tokens, advance, decays, factors_of_chunk, read
from hope_jax.kernels.self_mod.group import Group, Layout, Products, Rows, back, change, joined, through, wide

PyTree: TypeAlias = Any

Inputs: TypeAlias = tuple[jax.Array, PyTree]
"""x [n, D], what the memories read; further inputs of `Make`, leaves [n, ...]."""

Make: TypeAlias = Callable[[PyTree, dict[str, jax.Array], PyTree], tuple[PyTree, Tokens]]
"""(theta, what the memories read at a chunk's tokens, the tokens' other inputs) -> outputs, and the stream
that the chunk is written with. A pure function that closes over no array."""

Mean: TypeAlias = Callable[[Group], Group]
"""A group as an example has written it -> the group that all examples go on with."""

BLOCK_TOKENS = 128
"""Most tokens between saved weights. The more, the less is saved, and the more factors stand for a matrix."""

WIDE = 256
"""Width from which on CPU the examples of a batch go one after the other; narrower matrices stay in the
caches."""


class Pass(NamedTuple):
    """The constants of a pass. chunk: tokens (C). mean: after each chunk; None: no examples share a group."""

    make: Make
    layout: Layout
    rule: Rule
    chunk: int
    mean: Mean | None = None


def sweep(constants: Pass, group: Group, theta: PyTree, inputs: Inputs) -> tuple[Group, PyTree, PyTree]:
    """Reads and writes whole chunks in order, n of a multiple of `chunk` tokens, n > 0.

    theta: what `make` is differentiated by besides. Returns the group after the last write, the outputs of
    `make` with leaves [n, ...], and `change` of every chunk, leaves [chunks]. All blocks are equally long.
    """
    size = constants.chunk
    chunks, most = inputs[0].shape[0] // size, max(1, BLOCK_TOKENS // size)
    in_block = next(count for count in range(most, 0, -1) if chunks % count == 0)
    blocks = jax.tree.map(lambda t: t.reshape(-1, in_block, size, *t.shape[1:]), inputs)
    if constants.mean or constants.rule.momentum:
        chunk = jax.checkpoint(partial(_chunk, constants, False, theta), prevent_cse=False)
        block = jax.checkpoint(partial(jax.lax.scan, chunk), prevent_cse=False)
        group, (outs, changes, _) = jax.lax.scan(block, group, blocks)
    else:
        run = _with_backward(constants, inputs[0].shape[1] >= WIDE)
        group, outs, changes = run(theta, group, blocks)
    outs = jax.tree.map(lambda t: t.reshape(-1, *t.shape[3:]), outs)
    return group, outs, jax.tree.map(jnp.ravel, changes)


def read_chunk(constants: Pass, group: Group, theta: PyTree, inputs: Inputs) -> tuple[PyTree, Tokens]:
    """Outputs and stream of tokens that are read with the group as it stands."""
    return constants.make(theta, read(Products(group), constants.layout, inputs[0]), inputs[1])


def _step(constants: Pass, products: Products, theta: PyTree, inputs: Inputs) -> tuple[PyTree, Factors]:
    """Outputs and write of one chunk."""
    outs, tokens = constants.make(theta, read(products, constants.layout, inputs[0]), inputs[1])
    return outs, factors_of_chunk(products, constants.layout, tokens, constants.rule)


def _chunk(
    constants: Pass, keep: bool, theta: PyTree, group: Group, inputs: Inputs
) -> tuple[Group, tuple[PyTree, PyTree, Rows]]:
    """One chunk read and written. Returns the group; outputs, `change` and, if `keep`, products' results."""
    products = Products(group)
    outs, factors = _step(constants, products, theta, inputs)
    if keep:
        # As if the write's decay were not known before all products with the old matrices are: then XLA need
        # not copy these to overwrite them. A barrier is gone before it decides that.
        done = sum((0.0 * t[0, 0] for t in jax.tree.leaves(products.results)), jnp.zeros(()))
        factors = factors._replace(log_total=factors.log_total + done.astype(factors.log_total.dtype))
    new = advance(group, factors)
    new = constants.mean(new) if constants.mean else new
    return new, (outs, change(constants.layout, new, group), products.results if keep else {})


def _with_backward(constants: Pass, in_turn: bool) -> Callable[..., tuple[Group, PyTree, PyTree]]:
    """The pass over (theta, group, inputs [blocks, chunks, C, ...]), with a backward pass of its own."""

    def forward(theta: PyTree, group: Group, inputs: Inputs) -> tuple[Any, Any]:
        def block(group: Group, inputs: Inputs) -> tuple[Group, Any]:
            end, made = jax.lax.scan(partial(_chunk, constants, True, theta), group, inputs)
            return end, (*made, group)

        end, (outs, changes, results, starts) = jax.lax.scan(block, group, inputs)
        return (end, outs, changes), (theta, inputs, starts, results, end)

    def backward(kept: Any, cotangents: tuple[Group, PyTree, PyTree]) -> tuple[PyTree, Group, Inputs]:
        theta, inputs, starts, results, end = kept
        by_end, by_outs, _ = cotangents
        carried = by_end, _along(by_end, end), jax.tree.map(jnp.zeros_like, theta)
        block = partial(_block_backward, constants, theta)
        xs = starts, results, inputs, by_outs
        (by_group, _, by_theta), by_inputs = jax.lax.scan(block, carried, xs, reverse=True)
        return by_theta, by_group, by_inputs

    if in_turn:
        forward, backward = _in_turn(forward), _in_turn(backward)
    run = jax.custom_vjp(lambda *arguments: forward(*arguments)[0])
    run.defvjp(forward, backward)
    return run


_Carried: TypeAlias = tuple[Group, jax.Array, PyTree]
"""Of the backward pass: G of the group, s, and what `theta` has gathered."""


def _block_backward(
    constants: Pass, theta: PyTree, carried: _Carried, xs: tuple[Group, Rows, Inputs, PyTree]
) -> tuple[_Carried, Inputs]:
    start, *rest = xs
    factors = jax.lax.map(lambda of: _step(constants, Products((), of[0]), theta, of[1])[1], rest[:2])
    after, shares = decays(jnp.ones_like(factors.log_total), factors.log_total)
    shared: list[tuple[jax.Array, ...]] = []
    for w, *both in zip(start, factors.left, factors.right, strict=True):
        # Nothing is read after the last write.
        left, right = (t[:-1].reshape(-1, t.shape[-1]) for t in both)
        shared.append((jnp.concatenate([w, left.T.astype(w.dtype)], 1), right))
    chunk = partial(_chunk_backward, constants, theta, shared)
    return jax.lax.scan(chunk, carried, (jnp.exp(after[:-1]), shares[:-1, :-1], *rest), reverse=True)


def _chunk_backward(
    constants: Pass, theta: PyTree, shared: list[tuple[jax.Array, ...]], carried: _Carried, xs: Any
) -> tuple[_Carried, Inputs]:
    """shared: beside and right of every matrix, see `group.Written`. xs: the chunk's own scale and weights,
    its products' results, inputs and the cotangents of its outputs."""
    by_new, along, gathered = carried
    scale, weight, results, inputs, by_outs = xs
    repeats = [len(right) // max(1, len(weight)) for _, right in shared]
    group = tuple((*w, scale, jnp.repeat(weight, n)) for w, n in zip(shared, repeats, strict=True))

    def rest(results: Rows, theta: PyTree, inputs: Inputs) -> tuple[tuple[PyTree, Factors], Rows]:
        products = Products(group, results)
        return _step(constants, products, theta, inputs), products.rows

    (_, factors), pull, rows = jax.vjp(rest, results, theta, inputs, has_aux=True)
    pairs = list(zip(by_new, factors.left, factors.right, strict=True))
    by_left = tuple(-through(g, right) for g, _, right in pairs)
    by_right = tuple(-back(g, left.astype(r.dtype)).astype(r.dtype) for g, left, r in pairs)
    along -= _along(factors.left, by_left)
    by_factors = Factors(along.astype(factors.log_total.dtype), by_left, by_right)
    by_results, by_theta, by_inputs = pull((by_outs, by_factors))
    along += _along(jax.tree.leaves(by_results), jax.tree.leaves(results))
    total = jnp.exp(factors.log_total)
    by_group = tuple(
        total.astype(g.dtype) * g + joined(i, rows, by_results, g.dtype) for i, g in enumerate(by_new)
    )
    return (by_group, along, jax.tree.map(jnp.add, gathered, by_theta)), by_inputs


def _along(a: Any, b: Any) -> jax.Array:
    """The inner product over all arrays of two trees, in at least float32."""
    return jnp.asarray(sum(jnp.vdot(wide(x), wide(y)) for x, y in zip(a, b, strict=True)))


def _in_turn(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of one example. A `vmap` over it runs the examples one after the other on CPU, where large
    products with a batch axis are slower than the same products in turn, and all at once elsewhere.

    The result has no derivative of its own: it is for the two halves of a `custom_vjp`.
    """
    one = jax.custom_batching.custom_vmap(function)

    @one.def_vmap
    def over(size: int, batched: Any, *arguments: Any) -> tuple[Any, Any]:
        axes = jax.tree.map(lambda own: 0 if own else None, tuple(batched))

        def in_turn(*arguments: Any) -> Any:
            def at(i: jax.Array) -> Any:
                pick = partial(jax.lax.dynamic_index_in_dim, index=i, keepdims=False)
                of_one = jax.tree.map(lambda t, own: pick(t) if own else t, arguments, tuple(batched))
                return function(*of_one)

            return jax.lax.map(at, jnp.arange(size))

        out = jax.lax.platform_dependent(*arguments, cpu=in_turn, default=jax.vmap(function, axes))
        return out, jax.tree.map(lambda _: True, out)

    return one
