"""Compiling for one run: a replay is compiled, run a few times on tiny arrays, and thrown away."""

from collections.abc import Callable
from typing import Any

import jax

UNOPTIMIZED = {"xla_backend_optimization_level": 0}


def quick_jit(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`jax.jit` without the compiler's optimizations."""
    return jax.jit(function, compiler_options=UNOPTIMIZED, **options)
