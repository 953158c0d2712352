"""Accelerators by name: published figures, and the devices of a topology to compile for.

A topology is `NAME:COUNT` (GPUs on one host, CPU devices) or `NAME:AxB` (a TPU slice).
"""

import contextlib
import math
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from hope_jax.core.errors import ConfigError, UserError, instead

GIB = 2**30
TERA = 1e12


class Peaks(NamedTuple):
    """What one device can do at most. bf16, float32: FLOP/s of matrix products (float32 at JAX's default
    precision: TF32 tensor cores, one bfloat16 pass on TPUs). bandwidth: bytes/s of main memory. link: bytes/s
    that one device sends to the others. memory: bytes that a program may use. launch: seconds between the
    starts of two kernels. sustained: realistic share of the FLOP/s."""

    bf16: float
    float32: float
    bandwidth: float
    link: float
    memory: float
    launch: float = 0.0
    sustained: float = 1.0

    @property
    def realistic(self) -> "Peaks":
        """With the FLOP/s that large products sustain."""
        return self._replace(bf16=self.sustained * self.bf16, float32=self.sustained * self.float32)


class Accelerator(NamedTuple):
    """A kind of device. platform: tpu | cuda | cpu. peaks: None where they are not known. target: XLA's
    description of a GPU to compile for. on_chip: memory spaces of compiled programs that are not main memory
    (VMEM). title: as people know it."""

    title: str
    platform: str
    peaks: Peaks | None
    target: str = ""
    on_chip: frozenset[int] = frozenset()

    @property
    def options(self) -> dict[str, Any] | None:
        """XLA's, to compile without the device."""
        # Both would run candidates on it. Products then go to cuBLAS, whose workspace is counted.
        without = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
        return without if self.platform == "cuda" else None


class Topology(NamedTuple):
    """A number of devices of one kind, and their shape as XLA names it."""

    name: str
    accelerator: Accelerator
    devices: int
    shape: str


_GPU_SHARE = 0.95
"""Share of a GPU's memory that a program may fill: the driver's context and NCCL take some. An assumption."""

_LAUNCH = 2.5e-6
"""Seconds from kernel to kernel on a GPU, where each is tiny. An assumption, between the 2 and 3 microseconds
that are commonly given; a CUDA graph takes less, a host that waits for a condition more."""


def _gpu(title: str, peaks: Peaks, own: str) -> Accelerator:
    """own: of XLA's GpuTargetConfig what is this GPU's. The other limits are those of all GPUs of capability
    8 and 9 (CUDA C Programming Guide, table of compute capabilities)."""
    target = f"""gpu_device_info {{ {own}
        fpus_per_core: 128 shared_memory_per_block: 49152
        threads_per_block_limit: 1024 threads_per_warp: 32
        block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
        registers_per_core_limit: 65536 registers_per_block_limit: 65536
    }}
    platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 8 }} device_description_str: "{title}" """
    return Accelerator(title, "cuda", peaks, target)


# Realistic shares of the peak of products are assumptions, to be measured by launch/gpu_check.sh: half on the
# 300 W card, which does not hold its highest clock under full load (180 TFLOPS of bfloat16), two thirds on
# the SXM boards. Nothing is taken off their bandwidths.
#
# 142 multiprocessors (18,176 cores), 48 GB on 384 bits, 960 GB/s, 91.1 TFLOPS outside the tensor cores:
# NVIDIA's figures as grafikkarten.com/de/news/nvidia-rtx-6000-grafikkarte-der-ada-generation repeats them;
# 2,505 MHz, 96 MB of L2, PCIe 4.0 x16: cputronic.com/de/gpu/nvidia-rtx-6000-ada-generation. Dense bfloat16
# is four times the 91.06 TFLOPS of 18,176 x 2 x 2.505 GHz and TF32 twice, NVIDIA's ratios for its
# professional GPUs (A40 datasheet: 37.4, 149.7, 74.8). NVIDIA's own page was not at hand. PCIe: 16 GT/s x
# 16 lanes x 128/130, 31.5 GB/s each way; no NVLink.
_RTX6000ADA = _gpu(
    "NVIDIA RTX 6000 Ada Generation",
    Peaks(
        *(364.2 * TERA, 182.1 * TERA),
        bandwidth=960e9,
        link=31.5e9,
        memory=_GPU_SHARE * 48 * GIB,
        launch=_LAUNCH,
        sustained=180 / 364.2,
    ),
    f"""cuda_compute_capability {{ major: 8 minor: 9 }} core_count: 142 clock_rate_ghz: 2.505
        device_memory_size: {48 * GIB} memory_bandwidth: {960 * 10**9} l2_cache_size: {96 * 2**20}
        shared_memory_per_block_optin: {99 * 1024} shared_memory_per_core: {100 * 1024}
        threads_per_core_limit: 1536""",
)


def _hopper(title: str, memory: int, bandwidth: int) -> Accelerator:
    """SXM5 boards of 132 multiprocessors. memory: bytes on the board."""
    return _gpu(
        title,
        Peaks(
            *(989.4 * TERA, 494.7 * TERA),
            bandwidth=bandwidth,
            link=450e9,
            memory=_GPU_SHARE * memory,
            launch=_LAUNCH,
            sustained=2 / 3,
        ),
        f"""cuda_compute_capability {{ major: 9 minor: 0 }} core_count: 132 clock_rate_ghz: 1.98
            device_memory_size: {memory} memory_bandwidth: {bandwidth} l2_cache_size: {50 * 2**20}
            shared_memory_per_block_optin: {227 * 1024} shared_memory_per_core: {228 * 1024}
            threads_per_core_limit: 2048""",
    )


# NVIDIA H100 datasheet and Hopper architecture whitepaper, SXM5: 132 multiprocessors, 80 GB of HBM3 at
# 3.35 TB/s, 989.4 TFLOPS of dense bfloat16, 494.7 of TF32, NVLink 900 GB/s (450 each way), 50 MB of L2.
_H100 = _hopper("NVIDIA H100 80GB HBM3", 80 * GIB, 3350 * 10**9)
# NVIDIA H200 datasheet: the same with 141 GB of HBM3e at 4.8 TB/s (GB are powers of ten: 131.3 GiB).
_H200 = _hopper("NVIDIA H200", 141 * 10**9, 4800 * 10**9)
# cloud.google.com/tpu/docs/v5e: 197 TFLOPS of bfloat16, 16 GB of HBM at 819 GB/s, interconnect 400 GB/s both
# ways. libtpu leaves 15.75 GiB to a program: it is what its out-of-memory error names as the capacity.
_V5E = Accelerator(
    title="TPU v5e",
    platform="tpu",
    peaks=Peaks(197 * TERA, 197 * TERA, 819e9, 200e9, 15.75 * GIB),
    on_chip=frozenset({1}),
)
_CPU = Accelerator(title="this machine's CPU as several devices", platform="cpu", peaks=None)

ACCELERATORS = {"rtx6000ada": _RTX6000ADA, "h100": _H100, "h200": _H200, "v5e": _V5E, "cpu": _CPU}

EXAMPLES = "rtx6000ada:2, h100:8, h200:1, v5e:2x2, v5e:4x4, cpu:2"

_PIP = {"tpu": "tpu", "cuda": "cuda12"}
"""The extra of JAX that brings what compiles for a platform: about 0.7 GB and 5 GB."""


def parse_topology(name: str) -> Topology:
    """The topology of a name like `h100:8` or `v5e:4x4`.

    Raises:
      ConfigError: an unknown accelerator, or a shape that it cannot have.
    """
    kind, _, shape = name.partition(":")
    known = f"{instead(kind, ACCELERATORS, 'known accelerators:')}; for example {EXAMPLES}"
    if kind not in ACCELERATORS:
        raise ConfigError(f"--topology={name}: unknown accelerator {kind!r}; {known}")
    accelerator = ACCELERATORS[kind]
    form = r"[1-9]\d*x[1-9]\d*" if accelerator.platform == "tpu" else r"[1-9]\d*"
    if not re.fullmatch(form, shape):
        wanted = f"{kind}:AxB" if accelerator.platform == "tpu" else f"{kind}:COUNT"
        raise ConfigError(f"--topology={name}: want {wanted}; {known}")
    return Topology(name, accelerator, math.prod(int(n) for n in shape.split("x")), shape)


def topology_here(devices: Sequence[jax.Device]) -> Topology:
    """That of devices that are here, by their kind; without published figures where they are not known."""
    kind, platform = devices[0].device_kind, devices[0].platform
    title = {"TPU v5 lite": _V5E.title}.get(kind, kind)
    found = next((each for each in ACCELERATORS.values() if each.title == title), None)
    accelerator = found or Accelerator(kind, {"gpu": "cuda"}.get(platform, platform), None)
    return Topology(kind, accelerator, len(devices), str(len(devices)))


def find_devices(topology: Topology) -> list[Any]:
    """Devices to compile for; they can run nothing (but for `cpu`). Call it before JAX has done anything.

    Raises:
      ConfigError: the plugin of the platform is not installed, or does not know the shape.
      UserError: JAX has started with fewer CPU devices.
    """
    # Nothing runs on an accelerator, and looking for one would take its memory or complain.
    jax.config.update("jax_platforms", "cpu")
    platform, name = topology.accelerator.platform, topology.name
    if platform == "cpu":
        return _cpu_devices(topology)
    for variable, value in _ENVIRONMENT[platform].items():
        os.environ.setdefault(variable, value)
    if platform == "cuda":
        target = topology.accelerator.target
        described: dict[str, Any] = {"target_config": target, "topology": f"1x1x{topology.devices}"}
    else:
        # Slices below a host's 2x2 chips are a host of that size.
        sides = [int(n) for n in topology.shape.split("x")]
        described = {"chips_per_host_bounds": (*sides, 1)} if topology.devices < 4 else {}
    absent = NotImplementedError if platform == "cuda" else RuntimeError
    try:
        return list(topologies.get_topology_desc(name, platform=platform, **described).devices)
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(f"--topology={name}: {error}") from error
    except absent as error:
        raise ConfigError(
            f"--topology={name} needs JAX's {platform} compiler, which is not installed (the device is "
            f'not needed): pip install "jax[{_PIP[platform]}]=={jax.__version__}", best in an environment of '
            "its own"
        ) from error


_ENVIRONMENT = {
    # Without these libtpu asks the network which TPU this is.
    "tpu": {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
    },
    # The plugin refuses to load without a driver otherwise.
    "cuda": {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"},
}


def _cpu_devices(topology: Topology) -> list[Any]:
    with contextlib.suppress(RuntimeError):  # A process whose JAX has begun keeps the devices that it has.
        jax.config.update("jax_num_cpu_devices", topology.devices)
    found = jax.devices("cpu")
    if len(found) < topology.devices:
        raise UserError(
            f"--topology={topology.name}: JAX has started with {len(found)} CPU devices; set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={topology.devices}"
        )
    return list(found[: topology.devices])
