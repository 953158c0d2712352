"""For the whole test process: double precision, quick compilation, and compiled programs that do not pile up.

Oracles and golden files are compared to 1e-9. The flag is global to a process, so every test runs under it;
production code names its dtypes.
"""

import gc
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

# Tests run most programs once or twice: XLA:CPU's better code takes longer to make than it saves. Commands
# that tests start inherit the flags; `launch/check.sh --all` compiles as users do. Newer versions cannot do
# without fusion emitters.
if "xla_backend_optimization_level" not in (flags := os.environ.get("XLA_FLAGS", "")):
    emitters = " --xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else ""
    os.environ["XLA_FLAGS"] = f"{flags} --xla_backend_optimization_level=0{emitters}".strip()

import jax
import pytest

jax.config.update("jax_enable_x64", True)

# Commands that tests start run the code of this checkout too, whichever one is installed.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
)

_MAPS = Path("/proc/self/maps")
_MOST_MAPS = 30_000
"""Memory maps of a process; Linux allows 65,530. A compiled program takes ten to hundreds of them, and XLA
crashes where it gets no more."""


@pytest.fixture(autouse=True)
def _programs_do_not_pile_up() -> Iterator[None]:
    yield
    if _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > _MOST_MAPS:
        jax.clear_caches()
        gc.collect()
