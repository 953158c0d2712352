"""Compile the train step for accelerators that are not here, and say what it asks of them.

python -m hope_jax.plan --config=FILE --topology=NAME [--json=FILE] [--compare=JSON] [--top=N] [--streaming]
    [--nolargest_batch] [--config.KEY=VALUE ...]

Topologies: rtx6000ada:2, h100:8, h200:1, v5e:4x4, cpu:2 and others of these kinds. Prints memory per device,
FLOPs, bytes by cause and part of the model, kernel launches, collectives, and bounds on the time from
published peaks; nothing is run or allocated. --compare sets a plan of before, its --json, beside this one;
--top lists the N kernels that move the most. With --streaming also the cost per token of reading and writing
a stream as its context grows from 2k to 1M tokens.
GPUs and TPUs need their compiler as a plugin: docs/plan.md.
"""

import json
from pathlib import Path
from typing import Any

from absl import flags

from hope_jax import cli
from hope_jax.config.check import validate
from hope_jax.core.errors import ConfigError
from hope_jax.core.output import say

_TOPOLOGY = flags.DEFINE_string("topology", None, "Devices to compile for, for example rtx6000ada:2.")
_JSON = cli.define_path("json", "File for the figures as JSON.")
_COMPARE = cli.define_path("compare", "JSON of a plan of before, to be set beside this one.")
_TOP = flags.DEFINE_integer(
    "top", 0, "Kernels listed, those that move the most bytes.", lower_bound=0, allow_override=True
)
_STREAMING = flags.DEFINE_boolean("streaming", False, "Cost per token of a stream from 2k to 1M tokens.")
_TRAIN = flags.DEFINE_boolean("train", True, "The train step.")
_LARGEST = flags.DEFINE_boolean("largest_batch", True, "Search the largest batch that fits, by compiling.")
_CONTEXTS = flags.DEFINE_list("contexts", ["2048", "16384", "131072", "1048576"], "Contexts of --streaming.")
cli.define_config()


def main(argv: list[str]) -> None:
    """Prints the table and writes the JSON."""
    cli.refuse_arguments(argv)
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
    before = _before(_COMPARE.value) if _COMPARE.value else None
    config = cli.load_config()
    # JAX takes seconds to import.
    from hope_jax.planning import devices, estimate, table

    topology = devices.parse_topology(str(_TOPOLOGY.value))
    found = devices.find_devices(topology)
    validate(config, device_count=topology.devices if _TRAIN.value else None)
    plan = estimate.make_plan(
        *(config, topology, found),
        train=_TRAIN.value,
        largest=_LARGEST.value,
        contexts=contexts if _STREAMING.value else [],
        top=_TOP.value,
    )
    plan = {"config": str(cli.config_path()), **plan}
    if target:
        cli.write_json("json", target, plan)
    say("\n".join(table.lines(plan)))
    if before:
        say("\n".join(table.comparison(plan, before)))


def _before(path: str) -> dict[str, Any]:
    """A plan of before. Raises: ConfigError if the file is none."""
    try:
        plan = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--compare={path}: {error}") from error
    if not isinstance(plan, dict) or not {"config", "train"} <= plan.keys():
        raise ConfigError(f"--compare={path}: want the JSON of a plan, made with --json")
    return plan


if __name__ == "__main__":
    cli.run_command(main)
