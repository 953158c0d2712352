"""Facts about the machine and the software that a run is measured against."""

import importlib.metadata
import math
import platform
import subprocess
import time
from pathlib import Path

import jax
import jax.numpy as jnp

_PACKAGES = ("hope_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a run's numbers ("absent" where not installed)."""
    out = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            out[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            out[name] = "absent"
    return out


def git_revision() -> str | None:
    """Commit of the checkout this package runs from, with "+" if files have changed; None elsewhere."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        revision, changed = (
            subprocess.run(
                ["git", "-C", str(root), *command], capture_output=True, text=True, timeout=10, check=True
            ).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return revision + ("+" if changed else "")


def device_description() -> str:
    """Kind and count of the devices, e.g. "cpu x 1 (2 processes)"."""
    processes = f" ({jax.process_count()} processes)" if jax.process_count() > 1 else ""
    return f"{jax.devices()[0].device_kind} x {jax.device_count()}{processes}"


def measure_matmul_peak(repeats: int = 5) -> float:
    """FLOP/s of a square float32 matmul, the best of a few, over all devices of the run together.

    Devices of the CPU platform share the host's cores, so they count once per process.
    """
    on_cpu = jax.default_backend() == "cpu"
    size = 1024 if on_cpu else 8192
    operand = jnp.full((size, size), 1.0 / size, jnp.float32)
    product = jax.jit(jnp.matmul)
    product(operand, operand).block_until_ready()
    best = math.inf
    for _ in range(repeats):
        start = time.perf_counter()
        product(operand, operand).block_until_ready()
        best = min(best, time.perf_counter() - start)
    copies = jax.process_count() if on_cpu else jax.device_count()
    return 2.0 * size**3 / best * copies
