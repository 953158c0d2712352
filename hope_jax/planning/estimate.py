"""A plan as plain values for JSON: programs compiled, counted, and held to published peaks."""

import logging
from typing import Any

from hope_jax.config import assemble
from hope_jax.config.chunks import stream_chunk
from hope_jax.config.experiment import ExperimentConfig
from hope_jax.config.room import remedies
from hope_jax.planning import compile
from hope_jax.planning.compile import Compiled
from hope_jax.planning.counts import Counts
from hope_jax.planning.devices import Peaks, Topology
from hope_jax.planning.search import largest_batch

logger = logging.getLogger("hope_jax.plan")


def make_plan(
    config: ExperimentConfig,
    topology: Topology,
    devices: list[Any],
    *,
    train: bool,
    largest: bool,
    contexts: list[int],
) -> dict[str, Any]:
    """Compiles what is asked for: the train step, larger batches until one does not fit, and chunks of
    streams with these contexts. devices: the topology's."""
    rows, peaks = config.data.batch_size, topology.accelerator.peaks
    plan: dict[str, Any] = {
        "topology": {
            "name": topology.name,
            "title": topology.accelerator.title,
            "devices": topology.devices,
            "peaks": peaks._asdict() if peaks else None,
        },
        "batch_size": rows,
        "train": None,
        "remedies": [],
        "largest_batch": None,
    }

    def needed(per_device: int) -> float | None:
        logger.info("compiling for %d rows a device", per_device)
        try:
            return compile.train_step(config, topology, devices, per_device * topology.devices).memory["peak"]
        except compile.DoesNotFit as error:
            return error.needed

    if train:
        logger.info("compiling the train step")
        tokens, size = rows * config.data.seq_len, None
        try:
            step = compile.train_step(config, topology, devices, rows)
            useful, size = assemble.flops_per_token(config), step.memory["peak"]
            plan["train"] = describe(step, topology, tokens, useful)
        except compile.DoesNotFit as error:
            plan["train"] = {"tokens": tokens, "refused": error.needed, "fits": False}
        if plan["train"]["fits"] is False:
            plan["remedies"] = remedies(config, topology.devices)
        if largest and peaks:
            fit = largest_batch(needed, peaks.memory, {rows // topology.devices: size})
            plan["largest_batch"] = {
                "per_device": fit.largest,
                "smallest_failing": fit.failing,
                "exact": fit.exact,
                "tried": {str(rows): size for rows, size in sorted(fit.tried.items())},
            }
    plan["streaming"] = [_stream(config, topology, devices, context) for context in contexts]
    return plan


def _stream(config: ExperimentConfig, topology: Topology, devices: list[Any], context: int) -> dict[str, Any]:
    logger.info("compiling a stream with a context of %d tokens", context)
    tokens, alone = stream_chunk(config), topology._replace(devices=1)
    try:
        chunk = compile.stream_chunk(config, alone, devices, context)
    except compile.DoesNotFit as error:
        return {"context": context, "tokens": tokens, "refused": error.needed, "fits": False}
    return {"context": context, **describe(chunk, alone, tokens, 0.0)}


def describe(compiled: Compiled, topology: Topology, tokens: int, useful_flops: float) -> dict[str, Any]:
    """One program, per device. tokens: that one run of it reads on all devices together. useful_flops: of a
    token."""
    counts, peaks = compiled.counts, topology.accelerator.peaks
    useful = useful_flops * tokens / topology.devices
    limits = bound(counts, peaks) if peaks else {}
    seconds = max(limits.values(), default=0.0)
    return {
        "memory_bytes": compiled.memory,
        "capacity_bytes": peaks.memory if peaks else None,
        "fits": compiled.memory["peak"] <= peaks.memory if peaks else None,
        "matmul_flops": counts.flops,
        "useful_flops": useful,
        "useful_share": useful / counts.total_flops if counts.total_flops else None,
        "bytes_accessed": counts.bytes,
        "collectives": {kind: each._asdict() for kind, each in counts.collectives.items()},
        "loops_of_unknown_length": counts.unknown_loops,
        "compiler_counts_loops_once": {"flops": compiled.xla_flops, "bytes": compiled.xla_bytes},
        "tokens": tokens,
        "compile_seconds": compiled.seconds,
        "bound": {
            "seconds": limits,
            "limit": max(limits, key=lambda part: limits[part]),
            "step_seconds": seconds,
            "tokens_per_second": tokens / seconds if seconds else None,
        }
        if limits
        else None,
    }


def bound(counts: Counts, peaks: Peaks) -> dict[str, float]:
    """Seconds that products, memory traffic and links take at least, from published peaks, on each device; no
    run was timed. Products in 16 bits or less at the bfloat16 peak, all others at that of float32. As if they
    overlapped perfectly, no step is shorter than the largest if the counts hold."""
    compute = sum(
        flops / (peaks.bf16 if dtype.startswith(("bf16", "f16", "f8")) else peaks.float32)
        for dtype, flops in counts.flops.items()
    )
    sent = sum(each.sent for each in counts.collectives.values())
    return {"compute": compute, "memory": counts.bytes / peaks.bandwidth, "links": sent / peaks.link}
