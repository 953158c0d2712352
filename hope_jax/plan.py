"""Compile the train step for accelerators that are not here, and say what it asks of them.

python -m hope_jax.plan --config=FILE --topology=NAME [--json=FILE] [--streaming] [--nolargest_batch]
    [--config.KEY=VALUE ...]

Topologies: rtx6000ada:2, h100:8, v5e:2x2, v5e:4x4, cpu:2 and others of these kinds. Prints memory per device,
FLOPs, bytes, collectives, and a bound on the time from published peaks; nothing is run or allocated. With
--streaming also the cost per token of reading and writing a stream as its context grows from 2k to 1M tokens.
GPUs and TPUs need their compiler as a plugin: docs/plan.md.
"""

import json
import logging
from typing import Any

from absl import flags

from hope_jax import cli
from hope_jax.config.check import validate
from hope_jax.config.experiment import ExperimentConfig
from hope_jax.core.errors import ConfigError
from hope_jax.core.output import say

_TOPOLOGY = flags.DEFINE_string("topology", None, "Devices to compile for, for example rtx6000ada:2.")
_JSON = cli.define_path("json", "File for the figures as JSON.")
_STREAMING = flags.DEFINE_boolean("streaming", False, "Cost per token of a stream from 2k to 1M tokens.")
_TRAIN = flags.DEFINE_boolean("train", True, "The train step.")
_LARGEST = flags.DEFINE_boolean("largest_batch", True, "Search the largest batch that fits, by compiling.")
_CONTEXTS = flags.DEFINE_list("contexts", ["2048", "16384", "131072", "1048576"], "Contexts of --streaming.")
cli.define_config()

logger = logging.getLogger("hope_jax.plan")


def main(argv: list[str]) -> None:
    """Prints the table and writes the JSON."""
    if argv:
        raise ConfigError(f"unexpected argument {argv[0]!r}; every option is a flag (--help)")
    if not _TOPOLOGY.value:
        raise ConfigError("--topology is missing; want for example --topology=rtx6000ada:2")
    try:
        contexts = [int(tokens) for tokens in _CONTEXTS.value]
    except ValueError:
        contexts = [0]
    if min(contexts, default=0) < 1:
        raise ConfigError(f"--contexts: want whole numbers, at least 1, got {','.join(_CONTEXTS.value)}")
    if not _TRAIN.value and not _STREAMING.value:
        raise ConfigError("--notrain: nothing is left to compile; add --streaming")
    target = cli.output_file("json", _JSON.value)
    config = cli.load_config()
    # JAX takes seconds to import.
    from hope_jax.planning import devices
    from hope_jax.planning import table as report

    topology = devices.parse_topology(str(_TOPOLOGY.value))
    found = devices.find_devices(topology)
    validate(config, device_count=topology.devices if _TRAIN.value else None)
    plan = make_plan(config, topology, found, contexts if _STREAMING.value else [])
    plan = {"config": str(cli.config_path()), **plan}
    if target:
        cli.write_files("json", {target: (json.dumps(plan, indent=1) + "\n").encode()})
    say("\n".join(report.lines(plan)))


def make_plan(
    config: ExperimentConfig, topology: Any, found: list[Any], contexts: list[int]
) -> dict[str, Any]:
    """Everything but the configuration's name, as plain values. found: the topology's devices."""
    from hope_jax.config import assemble
    from hope_jax.planning import compile, search
    from hope_jax.planning import table as report

    rows, peaks = config.data.batch_size, topology.accelerator.peaks
    useful = assemble.flops_per_token(config)

    def needed(per_device: int) -> float | None:
        logger.info("compiling for %d rows a device", per_device)
        try:
            return compile.train_step(config, topology, found, per_device * topology.devices).memory.peak
        except compile.DoesNotFit as error:
            return error.needed

    train: dict[str, Any] | None = None
    fit = None
    if _TRAIN.value:
        tokens, size = rows * config.data.seq_len, None
        logger.info("compiling the train step")
        try:
            step = compile.train_step(config, topology, found, rows)
            train, size = report.describe(step, topology, tokens, useful), step.memory.peak
        except compile.DoesNotFit as error:
            train = {"tokens": tokens, "refused": error.needed, "fits": False}
        if _LARGEST.value and peaks:
            known = {rows // topology.devices: size}
            fit = report.describe_fit(search.largest_batch(needed, peaks.memory, known))
    return {
        "topology": report.describe_topology(topology),
        "batch_size": rows,
        "train": train,
        "largest_batch": fit,
        "streaming": [_stream_row(config, topology, found, context) for context in contexts],
    }


def _stream_row(config: ExperimentConfig, topology: Any, found: list[Any], context: int) -> dict[str, Any]:
    from hope_jax.config.chunks import stream_chunk
    from hope_jax.planning import compile
    from hope_jax.planning import table as report

    logger.info("compiling a stream with a context of %d tokens", context)
    tokens, alone = stream_chunk(config), topology._replace(devices=1)
    try:
        chunk = compile.stream_chunk(config, alone, found, context)
    except compile.DoesNotFit as error:
        return {"context": context, "tokens": tokens, "refused": error.needed, "fits": False}
    return {"context": context, **report.describe(chunk, alone, tokens, 0.0)}


if __name__ == "__main__":
    cli.run_command(main)
