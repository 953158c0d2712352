"""Compiles the train step, or one chunk of a stream, from shapes alone, for devices that need not be here."""

import re
import time
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from hope_jax.cluster.sharding import batch_sharding, make_mesh, replicated
from hope_jax.config import assemble
from hope_jax.config.experiment import ExperimentConfig
from hope_jax.core.types import Batch, PyTree
from hope_jax.planning.counts import Counts, count
from hope_jax.planning.devices import GIB, Topology
from hope_jax.planning.parts import Op, operations
from hope_jax.training.step import Step, jit_train, state_shardings


class Compiled(NamedTuple):
    """A program as compiled.

    memory: bytes on each device, by the compiler: arguments, outputs, aliased (of the outputs, in the place
    of arguments: the donated state), temporaries, code, and peak, which has to fit: on TPUs the compiler's
    peak and the code, as temporaries are not all there at once; elsewhere arguments + outputs - aliased +
    temporaries + code, as temporaries are one allocation. ops: part and place in the source of each kernel.
    xla_flops, xla_bytes: the compiler's own analysis,
    which counts each loop's body once; None where it gives none. seconds: of tracing and compiling."""

    memory: dict[str, float]
    counts: Counts
    ops: dict[str, Op]
    xla_flops: float | None
    xla_bytes: float | None
    seconds: float


class DoesNotFit(Exception):
    """The compiler itself refused: more memory than the device has. needed: bytes, if it says."""

    def __init__(self, needed: float | None) -> None:
        super().__init__("does not fit")
        self.needed = needed


def train_step(config: ExperimentConfig, topology: Topology, devices: list[Any], batch_size: int) -> Compiled:
    """The step that training runs (`training.step.jit_train`), on a global batch of `batch_size` rows.

    Raises:
      DoesNotFit: the compiler needs more memory than the device has (TPUs).
    """
    mesh = make_mesh(devices)
    return _compile(partial(lower_step, Step(config, mesh), mesh, batch_size, config.data.seq_len), topology)


def lower_step(step: Step, mesh: Mesh, batch_size: int, seq_len: int) -> jax.stages.Lowered:
    """The train step on a mesh, lowered from shapes."""
    state = _placed(jax.eval_shape(step.init), state_shardings(step, mesh))
    rows: Any = jax.ShapeDtypeStruct((batch_size, seq_len), jnp.int32, sharding=batch_sharding(mesh))
    return jit_train(step, mesh).lower(state, Batch(rows, rows, rows))


def stream_chunk(config: ExperimentConfig, topology: Topology, devices: list[Any], context: int) -> Compiled:
    """One online chunk of one stream, read and written in place, with a cache for `context` tokens; on one
    device."""
    streamer = assemble.streamer(config)
    mesh = Mesh(np.asarray(devices[:1]), ("data",))
    params = jax.eval_shape(streamer.model.init_params, jax.random.key(0))
    state = jax.eval_shape(lambda p: streamer.begin(p, 1, context), params)
    everywhere = jax.tree.map(lambda _: replicated(mesh), (params, state))
    params, state = _placed((params, state), everywhere)
    rows: Any = jax.ShapeDtypeStruct((1, streamer.rule.chunk_size), jnp.int32, sharding=replicated(mesh))
    return _compile(
        lambda: type(streamer).write_chunks_in_place.lower(streamer, params, state, Batch(rows, rows, rows)),
        topology,
    )


def _placed(tree: PyTree, shardings: PyTree) -> PyTree:
    """Shapes with a place. shardings: of each leaf."""
    return jax.tree.map(lambda t, s: jax.ShapeDtypeStruct(t.shape, t.dtype, sharding=s), tree, shardings)


def _compile(lower: Any, topology: Topology) -> Compiled:
    started = time.perf_counter()
    try:
        compiled = lower().compile(compiler_options=topology.accelerator.options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        # The TPU compiler says "Used 23.4G of 15.75G hbm".
        used = re.search(r"Used ([\d.]+)([MG]) of", str(error))
        needed = float(used[1]) * {"M": GIB / 1024, "G": GIB}[used[2]] if used else None
        raise DoesNotFit(needed) from error
    return inspect(compiled, topology, time.perf_counter() - started)


def inspect(compiled: jax.stages.Compiled, topology: Topology, seconds: float) -> Compiled:
    """What a program that was compiled in `seconds` asks of each device of a topology."""
    text = compiled.as_text() or ""
    counts = count(text, topology.devices, topology.accelerator.on_chip)
    ops = operations(text, {kernel.it.name for kernel in counts.kernels})
    m: Any = compiled.memory_analysis()
    own: Any = compiled.cost_analysis() or {}
    memory: dict[str, float] = {
        "arguments": m.argument_size_in_bytes,
        "outputs": m.output_size_in_bytes,
        "aliased": m.alias_size_in_bytes,
        "temporaries": m.temp_size_in_bytes,
        "code": m.generated_code_size_in_bytes,
    }
    if topology.accelerator.platform == "tpu":
        memory["peak"] = m.peak_memory_in_bytes + memory["code"]
    else:
        memory["peak"] = sum(memory.values()) - 2 * memory["aliased"]
    return Compiled(memory, counts, ops, own.get("flops"), own.get("bytes accessed"), seconds)
