"""What a device does with this package: the same numbers as a CPU, and how fast beside the plan's bound.

A part returns plain values for JSON. `ok` is False where something is wrong, absent where nothing is judged.
Tolerances are relative to the largest number of an array; they are chosen, not derived.
"""

import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from typing import Any

import jax
import numpy as np

from hope_jax.config import assemble
from hope_jax.config.experiment import ExperimentConfig, level
from hope_jax.config.presets import paper_size_config, pilot_config, pilot_reference_config, set_schedule
from hope_jax.core.types import PyTree
from hope_jax.models.blocks import BLOCKS
from hope_jax.perf import torch_step
from hope_jax.perf.kernel_checks import Check, checks
from hope_jax.perf.op_times import traced
from hope_jax.perf.steps import StepRun, changed
from hope_jax.planning.compile import Compiled, inspect
from hope_jax.planning.devices import topology_here
from hope_jax.planning.estimate import describe
from hope_jax.planning.traffic import is_kernel, target
from hope_jax.training.telemetry import git_revision
from hope_jax.training.telemetry import versions as package_versions

Found = dict[str, Any]

TOLERANCES = {"float32": 1e-3, "bfloat16": 0.05}
"""By compute dtype. Products of float32 are taken in full precision for the comparison."""

WANTED = 0.4
"""Share of the plan's bound below which a profile is taken."""

CHUNKS = (32, 128, 256, 512, 1024, 2048)
SIZES = {"hope_340m": (1024, 16), "hope_760m": (1536, 24), "hope_1300m": (2048, 32)}
"""Width and heads."""

FEW = {
    "versions",
    "kernel/cms_write-1",
    "kernel/xent_teach",
    "step/hope_hybrid/online",
    "pilot/transformer",
    "pilot/online-32",
    "two_devices/online",
    "torch",
}
MODES = ("online", "two_pass", "through_writes")


def parts(small: bool) -> dict[str, Callable[[], Found]]:
    """All, each of some minutes at most. small: `FEW` of them, at toy sizes, for a machine without the
    device."""
    found: dict[str, Callable[[], Found]] = {"versions": versions}
    for check in checks(32, 64) if small else checks():
        found[f"kernel/{check.name}"] = partial(kernel, check, small)
    for variant in BLOCKS:
        for mode in MODES:
            found[f"step/{variant}/{mode}"] = partial(steps, variant, mode, small)
    for name, config in _pilots():
        found[f"pilot/{name}"] = partial(speed, config, small)
    for name, (dim, heads) in SIZES.items():
        found[f"size/{name}"] = partial(speed, _sized(dim, heads), small)
    for mode in ("online", "two_pass"):
        found[f"two_devices/{mode}"] = partial(two_devices, mode, small)
    found["torch"] = partial(torch_step.speed, small)
    return {name: part for name, part in found.items() if not small or name in FEW}


def versions() -> Found:
    """Of software, devices and the driver."""
    names = ("jax-cuda12-plugin", "jax-cuda13-plugin", "jax-rocm7-plugin", "libtpu", "torch")
    installed = {each.metadata["Name"].lower(): each.version for each in metadata.distributions()}
    try:
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,power.limit", "--format=csv"]
        asked = subprocess.run(query, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        asked = "absent"
    devices = jax.devices()
    return {
        **package_versions(),
        **{name: installed[name] for name in names if name in installed},
        "commit": git_revision(),
        "devices": f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})",
        "runtime": getattr(devices[0].client, "platform_version", ""),
        "nvidia-smi": asked.strip(),
    }


def error(found: PyTree, wanted: PyTree) -> float:
    """The largest difference of any array, over its largest number; infinite where one alone is finite."""
    worst = 0.0
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        if not np.issubdtype(np.asarray(b).dtype, np.integer):
            a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
            if not np.array_equal(np.isfinite(a), np.isfinite(b)):
                return float("inf")
            a, b = np.nan_to_num(a), np.nan_to_num(b)
            worst = max(worst, float(abs(a - b).max(initial=0) / max(abs(b).max(initial=0), 1e-30)))
    return worst


def _judged(name: str, dtype: str, found: PyTree, wanted: PyTree) -> Found:
    off, tolerance = error(found, wanted), TOLERANCES[dtype]
    return {"name": name, "dtype": dtype, "error": off, "tolerance": tolerance, "ok": off <= tolerance}


def _all_ok(rows: list[Found]) -> Found:
    return {"rows": rows, "ok": all(row["ok"] for row in rows)}


def kernel(check: Check, small: bool) -> Found:
    """A kernel here and on the CPU, values and gradients; small: values alone."""
    devices, rows = (jax.devices()[0], jax.devices("cpu")[0]), []
    run = jax.jit((check._replace(by=()) if small else check).function())
    for dtype in TOLERANCES:
        with jax.default_matmul_precision("float32"):
            here, cpu = (jax.device_get(run(*jax.device_put(check.arguments(dtype), at))) for at in devices)
        rows.append(_judged(check.name, dtype, here, cpu))
    return _all_ok(rows)


def _parity_config(variant: str, mode: str, dtype: str, small: bool) -> ExperimentConfig:
    """The pilot's mechanisms, of 2 rows, taught and written at full strength."""
    config = pilot_config()
    set_schedule(config, 0, 0, 0)
    config.model.update({"block_variant": variant, "num_layers": 2})
    chunk = {"online": 64, "two_pass": 0, "through_writes": 32}[mode]
    config.train.update({"algorithm_mode": mode, "online_chunk_size": chunk, "compute_dtype": dtype})
    config.optim.warmup_steps = 0
    wide = {"data__seq_len": 256, "data__batch_size": 2, "data__mixture": {}, "model__dim": 256}
    return changed(config, **(_toy(config) if small else wide))


def _toy(config: Any) -> Found:
    """Values of a toy of a configuration."""
    small: Found = {
        "cms__levels": {"cms": level(update_period=8, lr=1e-3)},
        "model__dim": 16,
        "model__heads": 2,
        "model__num_layers": 1,
        "model__vocab_size": 64,
    }
    small |= {"data__seq_len": 64, "data__batch_size": 2, "data__mixture": {}}
    return small | {"train__online_chunk_size": min(config.train.online_chunk_size, 32)}


def _metrics(config: ExperimentConfig, devices: list[jax.Device], count: int = 3) -> list[PyTree]:
    """Of some steps on the same batch: the later ones show what the earlier ones learnt."""
    run = StepRun(config, devices)
    return [jax.device_get(run()[1]) for _ in range(count)]


def steps(variant: str, mode: str, small: bool) -> Found:
    """Metrics of three steps here and on the CPU: losses, norms, what was written; small: in float32."""
    rows = []
    for dtype in list(TOLERANCES)[: 1 if small else None]:
        config = _parity_config(variant, mode, dtype, small)
        with jax.default_matmul_precision("float32"):
            here, cpu = (_metrics(config, [each]) for each in (jax.devices()[0], jax.devices("cpu")[0]))
        rows.append(_judged(variant, dtype, here, cpu))
    return _all_ok(rows)


def two_devices(mode: str, small: bool) -> Found:
    """Metrics of three steps on two devices and on one."""
    if len(jax.devices()) < 2:
        return {"absent": "there is one device"}
    config = _parity_config("hope_hybrid", mode, "float32", small)
    two, one = (_metrics(config, jax.devices()[:count]) for count in (2, 1))
    return _all_ok([_judged(mode, "float32", two, one)])


def _pilots() -> Iterator[tuple[str, Any]]:
    """Configurations, not resolved, of the pilot and of the transformer of its size."""
    modes: dict[str, tuple[str, str, int]] = {"transformer": ("transformer", "two_pass", 0)}
    modes |= {"two_pass": ("hope_hybrid", "two_pass", 0)}
    modes |= {f"online-{chunk}": ("hope_hybrid", "online", chunk) for chunk in CHUNKS}
    for name, (variant, mode, chunk) in modes.items():
        config = pilot_config()
        config.model.block_variant = variant
        config.train.update({"algorithm_mode": mode, "online_chunk_size": chunk})
        yield name, config
    yield "reference", pilot_reference_config()


def _sized(dim: int, heads: int) -> Any:
    config = paper_size_config(dim=dim, heads=heads, tokens=15e9)
    config.data.batch_size = 1
    return config


def speed(unresolved: Any, small: bool) -> Found:
    """Tokens/s of the step on one device, its memory, the plan's bound beside it, and what is compiled."""
    config = changed(unresolved, **(_toy(unresolved) if small else {"data__mixture": {}}))
    try:
        run = StepRun(config)
        jax.block_until_ready(run())
    except jax.errors.JaxRuntimeError as refused:
        if "RESOURCE_EXHAUSTED" not in str(refused):
            raise
        return {"refused": str(refused).partition("\n")[0][:300]}
    device = jax.devices()[0]
    samples: list[float] = []
    while len(samples) < 3 or (len(samples) < 20 and sum(samples) < 30):
        started = time.perf_counter()
        jax.block_until_ready(run())
        samples.append(time.perf_counter() - started)
    seconds, tokens = float(np.median(samples)), config.data.batch_size * config.data.seq_len
    topology = topology_here([device])
    program = inspect(run.executable, topology, run.lower_seconds + run.compile_seconds)
    plan = describe(program, topology, tokens, assemble.flops_per_token(config), top=10)
    peaks, bound = topology.accelerator.peaks, plan["bound"]
    found: Found = {
        "tokens_per_second": tokens / seconds,
        "seconds": samples,
        "useful_share": plan["useful_flops"] / seconds / peaks.bf16 if peaks else None,
        "peak_bytes": (device.memory_stats() or {}).get("peak_bytes_in_use"),
        "share_of_bound": tokens / seconds / bound["tokens_per_second"] if bound else None,
        "calls": _calls(program),
        "attention": _attention(program),
        "plan": plan,
    }
    if found["share_of_bound"] is not None and found["share_of_bound"] < WANTED:
        found["profile"] = _profile(run, program)
    return found


def _calls(program: Compiled) -> dict[str, float]:
    """How often a step calls libraries and Pallas kernels, by target."""
    found: dict[str, float] = {}
    for kernel in program.counts.kernels:
        if is_kernel(kernel.it):
            name = target(kernel.it)
            found[name] = found.get(name, 0.0) + kernel.runs
    return found


def _attention(program: Compiled) -> dict[str, float]:
    """How often a step runs kernels of attention, by cause: `attention kernels` are a library's, `products`
    those of scores that are made in main memory."""
    found: dict[str, float] = {}
    for kernel in program.counts.kernels:
        if program.ops[kernel.it.name].part == "attention":
            found[kernel.cause] = found.get(kernel.cause, 0.0) + kernel.runs
    return found


def _profile(run: StepRun, program: Compiled) -> Found:
    """Seconds of a traced step by part and by cause, and its slowest operations."""
    times = traced(run)
    causes = {kernel.it.name: kernel.cause for kernel in program.counts.kernels}
    sums: dict[str, dict[str, float]] = {"part": {}, "cause": {}}
    for name, (seconds, _) in times.items():
        op = program.ops.get(name)
        for kind, key in (("part", op.part if op else "unknown"), ("cause", causes.get(name, "unknown"))):
            sums[kind][key] = sums[kind].get(key, 0.0) + seconds
    slowest = sorted(times.items(), key=lambda item: -item[1][0])[:20]
    return {**sums, "slowest": [{"name": name, "seconds": s, "runs": n} for name, (s, n) in slowest]}
