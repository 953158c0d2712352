"""Where arrays live: batches split over the `data` axis, everything else on every device."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from hope_jax.types import Batch

DATA_AXIS = "data"


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """All devices of all processes, or those given, along one data axis."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (DATA_AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """One copy on each device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Split by example, along the first axis."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


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
