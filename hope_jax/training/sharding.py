"""Where arrays live: batches split over the `data` axis, everything else on every device."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from hope_jax.types import Batch

DATA_AXIS = "data"


def make_mesh() -> Mesh:
    """All devices of all processes, along one data axis."""
    return jax.make_mesh((jax.device_count(),), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """One copy on each device."""
    return NamedSharding(mesh, PartitionSpec())


def shard_batch(mesh: Mesh, batch: Batch) -> Batch:
    """This process's rows of a global batch as global arrays, split by example."""
    sharding = NamedSharding(mesh, PartitionSpec(DATA_AXIS))
    return Batch(*(jax.make_array_from_process_local_data(sharding, t) for t in batch))


def shard_whole_batch(mesh: Mesh, batch: Batch) -> Batch:
    """A global batch that every process holds whole, as global arrays split by example."""
    sharding = NamedSharding(mesh, PartitionSpec(DATA_AXIS))

    def split(t: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(t.shape, sharding, lambda index: t[index])

    return Batch(*(split(np.asarray(t)) for t in batch))
