"""The weights of a group of memories that are written with one stream, stacked for few and large products.

Weights are kept as (out, in): the products with few rows, which are nearly all of the work, then run over
the long axis of the big matrix in the order in which it lies in memory. All W_in and W_skip stack into one
matrix.
"""

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

Memories: TypeAlias = dict[str, dict[str, jax.Array]]


class Part(NamedTuple):
    """The shape of one memory of a group. skip: it has a W_skip."""

    name: str
    hidden: int
    out: int
    skip: bool


Layout: TypeAlias = tuple[Part, ...]


class Stacked(NamedTuple):
    """Weights (or momentum buffers) of a group. rows: [R, D], all W_in and then all W_skip.
    w_out: [out, hidden] each."""

    rows: jax.Array
    w_out: tuple[jax.Array, ...]

    def matrices(self) -> tuple[jax.Array, ...]:
        """All of them, `rows` first."""
        return (self.rows, *self.w_out)


def of_matrices(matrices: tuple[jax.Array, ...]) -> Stacked:
    """The inverse of `Stacked.matrices`."""
    return Stacked(matrices[0], matrices[1:])


def layout_of(memories: Memories) -> Layout:
    """The static description of a group, from its weights (in the order of their names)."""
    return tuple(
        Part(name, m["w_in"].shape[0], m["w_out"].shape[0], "w_skip" in m)
        for name, m in sorted(memories.items())
    )


def stack(memories: Memories) -> Stacked:
    """The weights of a group as `Stacked`, in the order of `layout_of`."""
    ordered = [memories[name] for name in sorted(memories)]
    rows = [m["w_in"] for m in ordered] + [m["w_skip"] for m in ordered if "w_skip" in m]
    return Stacked(jnp.concatenate(rows), tuple(m["w_out"] for m in ordered))


def unstack(weights: Stacked, layout: Layout) -> Memories:
    """The inverse of `stack`."""
    memories: Memories = {}
    for part, (start, skip), w_out in zip(layout, columns(layout), weights.w_out, strict=True):
        memories[part.name] = {"w_in": weights.rows[start : start + part.hidden], "w_out": w_out}
        if part.skip:
            memories[part.name]["w_skip"] = weights.rows[skip : skip + part.out]
    return memories


def columns(layout: Layout) -> list[tuple[int, int]]:
    """Of each memory, where its hidden units and its skip begin among the stacked rows."""
    found, hidden, skip = [], 0, hidden_units(layout)
    for part in layout:
        found.append((hidden, skip))
        hidden, skip = hidden + part.hidden, skip + (part.out if part.skip else 0)
    return found


def hidden_units(layout: Layout) -> int:
    """Of all memories of a group."""
    return sum(part.hidden for part in layout)
