"""hope_jax: language models that keep learning while they run (Nested Learning / HOPE) in JAX."""

import importlib.util
import sys
from pathlib import Path

__version__ = "0.1.0"

_HERE = Path(__file__).parent


def _use_kernels_of_this_checkout() -> None:
    """Import `kernels/`, which stands beside this folder in a checkout, as `hope_jax.kernels`.

    A wheel has it inside this folder. Without this, a checkout that is not the installed one would take the
    kernels of the other.
    """
    name, folder = f"{__name__}.kernels", _HERE.parent / "kernels"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    globals()["kernels"] = module


if not (_HERE / "kernels").is_dir():
    _use_kernels_of_this_checkout()
