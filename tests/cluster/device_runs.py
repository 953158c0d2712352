"""Runs a few steps of tiny configurations on several simulated devices; a program, so that a test can choose
its devices and precision.

python tests/cluster/device_runs.py '[{"name": ..., "overrides": [...], "devices": [1, 4]}, ...]'

Prints one JSON object a case: name -> {"differences": {devices: {quantity: largest difference from the first
number of devices, over the largest value of that array}}, "collectives": {devices: {kind: times a step}},
"split": arrays of parameters and fast state that are split at rest, "wrote": smallest number of writes of a
level in a step, "applied": all writes}.
"""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hope_jax.cli import read_config
from hope_jax.cluster import sharding
from hope_jax.cluster.sharding import WHOLE, make_mesh, shard_whole_batch
from hope_jax.config import check as config_check
from hope_jax.config.experiment import ExperimentConfig
from hope_jax.core.types import Batch
from hope_jax.planning.counts import count
from hope_jax.storage.arrays import named
from hope_jax.training.step import Step, jit_train, state_shardings

STEPS = 5

SMALL = (
    "model.dim=16", "model.heads=2", "model.num_layers=2", "model.vocab_size=64", "data.seq_len=48",
    "data.batch_size=8", "memory.surprise_threshold=None", "self_modifying_titans.eta_scale=0.05",
    "optim.warmup_steps=0",
    "teach.schedule.warmup_steps=0", "self_modifying_titans.chunk_size=8",
    "self_modifying_titans.chunk_size_memory=16", "train.online_chunk_size=16", "optim.name=adamw",
    "optim.lr=0.01", "optim.eps=1e-3",
    "cms.levels={'fast': {'update_period': 8, 'lr': 0.1, 'optimizer': 'momentum'},"
    " 'slow': {'update_period': 48, 'lr': 0.1, 'optimizer': 'preconditioned', 'eps': 1e-3}}",
    "titan.level={'update_period': 8, 'lr': 0.1, 'optimizer': 'momentum'}",
)  # fmt: skip


def batches(config: ExperimentConfig) -> list[Batch]:
    """Rows of random tokens, of which devices have different numbers of supervised ones."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(STEPS):
        rows = rng.integers(0, 64, (config.data.batch_size, config.data.seq_len + 1)).astype(np.int32)
        targets = rows[:, 1:].copy()
        targets[1, 20:] = targets[6, :30] = -1
        made.append(Batch(rows[:, :-1], targets, np.ones_like(targets)))
    return made


def run(config: ExperimentConfig, devices: int) -> tuple[dict[str, np.ndarray], dict[str, float], list[int]]:
    """Every loss, statistic and array of the last state by name; how often each collective runs in a step;
    how many arrays of the parameters and of the fast state are split."""
    config_check.validate(config, device_count=devices)
    mesh = make_mesh(jax.devices()[:devices])
    step = Step(config, mesh)
    state = jax.jit(step.init, out_shardings=state_shardings(step, mesh))()
    rows = [shard_whole_batch(mesh, batch) for batch in batches(config)]
    train = jit_train(step, mesh).lower(state, rows[0]).compile()
    found: dict[str, np.ndarray] = {}
    for number, batch in enumerate(rows):
        state, metrics = train(state, batch)
        found |= {f"{name}.{number}": np.asarray(value) for name, value in named(metrics).items()}
    found |= {name: np.asarray(value) for name, value in named(state._asdict()).items()}
    counts = count(train.as_text(), devices)
    parts = (step.specs.params, step.specs.fast)
    split = [sum(spec != WHOLE for spec in jax.tree.leaves(part)) for part in parts]
    return found, {kind: each.times for kind, each in counts.collectives.items()}, split


def difference(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> dict[str, float]:
    """The largest difference over an array's largest value, by the first part of its name; NaN as 1."""
    worst: dict[str, float] = {}
    for name, value in a.items():
        size = np.abs(value).max(initial=0)
        apart = np.abs(value.astype(float) - b[name]).max(initial=0) / (size if size else 1)
        group = name.split(".")[0]
        worst[group] = max(worst.get(group, 0.0), 1.0 if np.isnan(apart) else float(apart))
    return worst


def compare(case: dict[str, Any]) -> dict[str, Any]:
    """One case's results; see above."""
    config = read_config(Path("configs/pilot_smoke.py"), [*SMALL, *case["overrides"]])
    first, *rest = case["devices"]
    alone, counts, _ = run(config, first)
    differences, collectives = {}, {str(first): counts}
    for devices in rest:
        found, collectives[str(devices)], split = run(config, devices)
        differences[str(devices)] = difference(alone, found)
    # Where there are no levels, one write stands for none.
    applied = [float(value.sum()) for name, value in alone.items() if ".updates_applied." in name] or [1.0]
    return {
        "differences": differences, "collectives": collectives, "split": split,
        "wrote": min(applied), "applied": sum(applied),
    }  # fmt: skip


if __name__ == "__main__":
    cases = json.loads(sys.argv[1])
    sharding.SMALLEST_SHARED = 256  # the matrices of these models
    jax.config.update("jax_num_cpu_devices", max(max(case["devices"]) for case in cases))
    jax.config.update("jax_enable_x64", any("float64" in str(case["overrides"]) for case in cases))
    for case in cases:
        print(json.dumps({case["name"]: compare(case)}), flush=True)
