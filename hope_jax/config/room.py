"""What helps where a train step does not fit into a device's memory."""

import dataclasses
from typing import Any

from hope_jax.config.check import validate
from hope_jax.config.chunks import online_chunk
from hope_jax.config.experiment import ExperimentConfig
from hope_jax.core.errors import ConfigError


def remedies(config: ExperimentConfig, devices: int) -> list[str]:
    """Values of keys, each with what it does, that make the step smaller, that this configuration does not
    have yet and with which it can run: first those that change no number. devices: over all processes."""
    rows, train = max(config.data.batch_size // devices, 1), config.train
    parts = next((n for n in range(train.accumulate + 1, rows + 1) if rows % n == 0), train.accumulate)
    chunk = max(online_chunk(config) // 2, 1) if train.algorithm_mode == "online" else train.online_chunk_size
    candidates: list[tuple[str, Any, str]] = [
        ("train.accumulate", parts, f"{rows // parts} of a device's {rows} rows at once"),
        ("train.remat", "layers", "each layer keeps its input alone, and is read again backward"),
        ("train.fsdp", devices > 1, "parameters and optimizer are split over the devices"),
        ("train.algorithm_mode", "online", "the activations of one chunk at once"),
        ("train.online_chunk_size", chunk, "the activations of fewer tokens at once"),
        ("data.batch_size", max(rows // 2, 1) * devices, "fewer rows, in a new run"),
        ("optim.momentum_dtype", "bfloat16", "2 bytes less for each parameter, in a new run"),
    ]
    found = [
        f"{key}={value} ({why})" for key, value, why in candidates if _helps(config, key, value, devices)
    ]
    return [*found, "a smaller model.dim, model.num_layers or data.seq_len"]


def _helps(config: ExperimentConfig, key: str, value: Any, devices: int) -> bool:
    """Whether the value is another one, and the configuration can run with it."""
    group, name = key.split(".")
    options = getattr(config, group)
    changed = dataclasses.replace(config, **{group: dataclasses.replace(options, **{name: value})})
    try:
        validate(changed, device_count=devices)
    except ConfigError:
        return False
    return bool(getattr(options, name) != value)
