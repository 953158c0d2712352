"""Facts about the machine and the software that a run is measured against."""

import importlib.metadata
import platform
import subprocess
import timeit
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
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def device_description() -> str:
    """Kind and count of the devices, e.g. "cpu x 1 (2 processes)"."""
    processes = f" ({jax.process_count()} processes)" if jax.process_count() > 1 else ""
    return f"{jax.devices()[0].device_kind} x {jax.device_count()}{processes}"


def measure_matmul_peak(repeats: int = 5) -> float:
    """FLOP/s of a square float32 matmul, the best of a few, over all devices of the run together. Devices of
    the CPU platform share the host's cores, so they count once per process."""
    on_cpu = jax.default_backend() == "cpu"
    size = 1024 if on_cpu else 8192
    operand = jnp.full((size, size), 1.0 / size, jnp.float32)
    product = jax.jit(jnp.matmul)
    product(operand, operand).block_until_ready()
    seconds = timeit.repeat(lambda: product(operand, operand).block_until_ready(), number=1, repeat=repeats)
    copies = jax.process_count() if on_cpu else jax.device_count()
    return 2.0 * size**3 / min(seconds) * copies
