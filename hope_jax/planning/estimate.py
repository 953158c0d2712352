"""A plan as plain values for JSON: programs compiled, counted, and held to published peaks."""

import logging
from collections.abc import Callable
from typing import Any

from hope_jax.config import assemble
from hope_jax.config.chunks import stream_chunk
from hope_jax.config.experiment import ExperimentConfig
from hope_jax.config.room import remedies
from hope_jax.planning import compile
from hope_jax.planning.compile import Compiled
from hope_jax.planning.counts import Counts, Kernel
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
    top: int = 0,
) -> dict[str, Any]:
    """Compiles what is asked for: the train step, larger batches until one does not fit, and chunks of
    streams with these contexts. devices: the topology's. top: how many of the step's kernels are listed."""
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
            plan["train"] = describe(step, topology, tokens, useful, top)
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


def describe(
    compiled: Compiled, topology: Topology, tokens: int, useful_flops: float, top: int = 0
) -> dict[str, Any]:
    """One program, per device. tokens: that one run of it reads on all devices together. useful_flops: of a
    token. top: how many of its kernels are listed."""
    counts, peaks = compiled.counts, topology.accelerator.peaks
    useful = useful_flops * tokens / topology.devices
    return {
        "memory_bytes": compiled.memory,
        "capacity_bytes": peaks.memory if peaks else None,
        "fits": compiled.memory["peak"] <= peaks.memory if peaks else None,
        "matmul_flops": counts.flops,
        "useful_flops": useful,
        "useful_share": useful / counts.total_flops if counts.total_flops else None,
        "bytes_accessed": counts.bytes,
        "by_cause": _sums(compiled, lambda kernel: kernel.cause),
        "by_part": _sums(compiled, lambda kernel: compiled.ops[kernel.it.name].part),
        "launches": counts.launches,
        "conditionals": counts.conditionals,
        "conditionals_logged": counts.logged,
        "largest": _largest(compiled, top),
        "collectives": {kind: each._asdict() for kind, each in counts.collectives.items()},
        "loops_of_unknown_length": counts.unknown_loops,
        "compiler_counts_loops_once": {"flops": compiled.xla_flops, "bytes": compiled.xla_bytes},
        "tokens": tokens,
        "compile_seconds": compiled.seconds,
        "bound": _bounds(counts, peaks, tokens) if peaks else None,
    }


def _sums(compiled: Compiled, of: Callable[[Kernel], str]) -> dict[str, dict[str, float]]:
    """Bytes and launches by a property of kernels, the most bytes first."""
    found: dict[str, dict[str, float]] = {}
    for kernel in compiled.counts.kernels:
        sums = found.setdefault(of(kernel), {"bytes": 0.0, "launches": 0.0})
        sums["bytes"] += kernel.moved
        sums["launches"] += kernel.runs
    return dict(sorted(found.items(), key=lambda item: -item[1]["bytes"]))


def _largest(compiled: Compiled, top: int) -> list[dict[str, Any]]:
    """The `top` kernels that move the most bytes in all their runs."""
    kernels = sorted(compiled.counts.kernels, key=lambda kernel: -kernel.moved)[:top]
    return [
        {
            "name": kernel.it.name,
            "opcode": kernel.it.opcode,
            "bytes": kernel.bytes,
            "runs": kernel.runs,
            "cause": kernel.cause,
            "results": [f"{shape.dtype}{list(shape.dims)}" for shape in kernel.it.shapes],
            **{key: getattr(compiled.ops[kernel.it.name], key) for key in ("part", "source", "op_name")},
        }
        for kernel in kernels
    ]


def _bounds(counts: Counts, peaks: Peaks, tokens: int) -> dict[str, Any]:
    """The least times and the most tokens/s that they allow. `tokens_per_second` is by published peaks and
    without launches, `tokens_per_second_with_launches` with them, `tokens_per_second_realistic` with them and
    the rate that large products sustain."""
    limits, realistic = bound(counts, peaks), bound(counts, peaks.realistic)
    launches = peaks.launch * counts.launches
    seconds = max(limits.values())
    times = {
        "tokens_per_second": seconds,
        "tokens_per_second_with_launches": max(seconds, launches),
        "tokens_per_second_realistic": max(*realistic.values(), launches),
    }
    return {
        "seconds": limits,
        "limit": max(limits, key=lambda part: limits[part]),
        "step_seconds": seconds,
        "launch_seconds": launches,
        "realistic_compute_seconds": realistic["compute"],
        **{name: tokens / each if each else None for name, each in times.items()},
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
