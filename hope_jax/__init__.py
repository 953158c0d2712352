"""hope_jax: language models that keep learning while they run (Nested Learning / HOPE) in JAX."""

import importlib.util
import sys
from importlib.machinery import PathFinder
from pathlib import Path

__version__ = "0.1.0"


def _find_kernels() -> None:
    """Make `hope_jax.kernels` the package in this folder, as a wheel has it, or else import the folder beside
    this one, as a checkout has it, under that name.

    Never that of another place: an installed checkout offers its own to every `hope_jax`.
    """
    name = f"{__name__}.kernels"
    inside = PathFinder.find_spec(name, __path__)
    if inside is not None and inside.loader is not None and inside.origin is not None:
        return
    folder = Path(__file__).resolve().parents[1] / "kernels"
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    if spec is None or spec.loader is None or not (folder / "__init__.py").is_file():
        raise ImportError(
            f"{__file__}: its kernels are neither in that folder, as a wheel has them, nor in {folder}, as a "
            "checkout has them; copy both folders, or install the package",
            name=name,
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    globals()["kernels"] = module


_find_kernels()
