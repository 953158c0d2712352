"""For the whole test process: double precision, and compiled programs that do not pile up.

Oracles and golden files are compared to 1e-9. The flag is global to a process, so every test runs under it;
production code names its dtypes.
"""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

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
