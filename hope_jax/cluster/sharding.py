"""Where arrays live: batches split over the `data` axis; the state on every device, or split over the same
axis at rest (`train.fsdp`): gathered at the start of a step, and its gradient summed into the shares."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from hope_jax.core.types import Batch, PyTree

DATA_AXIS = "data"

WHOLE = PartitionSpec()
"""The same on every device."""

BY_EXAMPLE = PartitionSpec(DATA_AXIS)
"""Split along the first axis."""

SMALLEST_SHARED = 1024
"""Elements below which an array is not worth a collective of its own."""


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """All devices of all processes, or those given, along one data axis."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (DATA_AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """One copy on each device."""
    return NamedSharding(mesh, WHOLE)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Split by example."""
    return NamedSharding(mesh, BY_EXAMPLE)


def stack_shardings(mesh: Mesh, *, split_at_rest: bool) -> tuple[NamedSharding, NamedSharding]:
    """Of a stack of wide matrices [M, rows, columns], each the work of one device, and of the same stack at
    rest: on every device, or split as `shared` splits such matrices."""
    rest = PartitionSpec(None, None, DATA_AXIS) if split_at_rest else WHOLE
    return NamedSharding(mesh, BY_EXAMPLE), NamedSharding(mesh, rest)


def shard_batch(mesh: Mesh, batch: Batch) -> Batch:
    """This process's rows of a global batch as global arrays, split by example."""
    sharding = batch_sharding(mesh)
    return Batch(*(jax.make_array_from_process_local_data(sharding, t) for t in batch))


def shard_whole_batch(mesh: Mesh, batch: Batch) -> Batch:
    """A global batch that every process holds whole, as global arrays split by example."""
    sharding = batch_sharding(mesh)

    def split(t: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(t.shape, sharding, lambda index: t[index])

    return Batch(*(split(np.asarray(t)) for t in batch))


def shared(tree: Any, devices: int) -> Any:
    """A `PartitionSpec` for each leaf (anything with a shape): split over all devices where they divide an
    axis, whole where they do not or where the leaf is small."""
    return jax.tree.map(lambda leaf: _spec(tuple(leaf.shape), devices), tree)


def whole(tree: Any) -> Any:
    """A `PartitionSpec` for each leaf: the same on every device."""
    return jax.tree.map(lambda _: WHOLE, tree)


def _spec(shape: tuple[int, ...], devices: int) -> PartitionSpec:
    """The longest axis that the devices divide; of a stack, its first axis, the layers', only for want of
    another."""
    axes = [axis for axis, size in enumerate(shape) if size % devices == 0]
    if not axes or devices == 1 or math.prod(shape) < SMALLEST_SHARED:
        return WHOLE
    best = max(axes, key=lambda axis: (axis > 0 or len(shape) < 3, shape[axis], axis))
    return PartitionSpec(*[None] * best, DATA_AXIS)  # its last entry, here and below, is the split axis


def gather(tree: PyTree, specs: PyTree) -> PyTree:
    """Inside a map over devices: each leaf whole, from the shares that `specs` describe."""

    def whole_of(share: jax.Array, spec: PartitionSpec) -> jax.Array:
        if spec == WHOLE:
            return share
        return jax.lax.all_gather(share, DATA_AXIS, axis=len(spec) - 1, tiled=True)

    return jax.tree.map(whole_of, tree, specs)


def add_up(tree: PyTree, specs: PyTree) -> PyTree:
    """Inside a map over devices: each leaf's sum over the devices, of which every device keeps the share that
    `specs` describe."""
    by_leaf = jax.tree.leaves(jax.tree.map(lambda _, spec: spec, tree, specs))
    leaves = list(zip(jax.tree.leaves(tree), by_leaf, strict=True))
    sums = iter(jax.lax.psum([leaf for leaf, spec in leaves if spec == WHOLE], DATA_AXIS))
    added = [
        next(sums)
        if spec == WHOLE
        else jax.lax.psum_scatter(leaf, DATA_AXIS, scatter_dimension=len(spec) - 1, tiled=True)
        for leaf, spec in leaves
    ]
    return jax.tree.unflatten(jax.tree.structure(tree), added)
