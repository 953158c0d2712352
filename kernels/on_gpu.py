"""Pallas kernels beside the plain form of the same function: NVIDIA GPUs run the one, all else the other.

Which device a program is for is known when it is lowered, not before, so both are traced. Nothing here has
run on a GPU: kernels are compiled for absent ones and compared with the plain form in Pallas' interpreter.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax

Out = TypeVar("Out")


def with_kernel(
    kernel: Callable[..., Out], plain: Callable[..., Out], differentiated: Callable[..., Out] | None = None
) -> Callable[..., Out]:
    """`plain`, which `kernel` computes on GPUs. Derivatives of every order are those of `plain`.

    All take arrays and return a tree of arrays of the same shapes and dtypes. differentiated: in the kernel's
    place where a derivative is taken, which may need the arguments again.
    """
    # Under `jit` a kernel is traced once for each shape, not once for each layer and matrix.
    alone, beside = jax.jit(kernel), jax.jit(differentiated or kernel)

    def either(*arguments: Any) -> Out:
        found: Out = jax.lax.platform_dependent(*arguments, cuda=alone, default=plain)
        return found

    def tangent(primals: Any, tangents: Any) -> tuple[Any, Any]:
        found = jax.lax.platform_dependent(*primals, cuda=beside, default=plain)
        return found, jax.jvp(plain, primals, tangents)[1]

    function = jax.custom_jvp(either)
    function.defjvp(tangent)
    return function
