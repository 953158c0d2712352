"""Pallas kernels beside the plain form of the same function: NVIDIA GPUs run the one, all else the other.

Which device a program is for is known when it is lowered, not before, so both are traced. Nothing here has
run on a GPU: kernels are compiled for absent ones and compared with the plain form in Pallas' interpreter.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax

Out = TypeVar("Out")


def with_kernel(
    kernel: Callable[..., Out],
    plain: Callable[..., Out],
    keeping: Callable[..., tuple[Out, Any]] | None = None,
) -> Callable[..., Out]:
    """`plain`, which `kernel` computes on GPUs. Derivatives of every order are those of `plain`.

    All take arrays and return a tree of arrays of the same shapes and dtypes. keeping: in the kernel's place
    where a derivative is taken, which needs the arguments again: it returns them, too, because they are
    copied for less where it has read them than by XLA. None: they are not written over.
    """
    # Under `jit` a kernel is traced once for each shape, not once for each layer and matrix.
    alone, beside = jax.jit(kernel), jax.jit(keeping or (lambda *given: (kernel(*given), given)))

    def plain_and_given(*given: Any) -> tuple[Out, Any]:
        return plain(*given), given

    @jax.custom_jvp
    def with_given(*given: Any) -> tuple[Out, Any]:
        found: tuple[Out, Any] = jax.lax.platform_dependent(*given, cuda=beside, default=plain_and_given)
        return found

    @jax.custom_jvp
    def function(*given: Any) -> Out:
        found: Out = jax.lax.platform_dependent(*given, cuda=alone, default=plain)
        return found

    @with_given.defjvp
    def _(given: Any, tangents: Any) -> tuple[Any, Any]:
        found, given = with_given(*given)
        return (found, given), (jax.jvp(plain, given, tangents)[1], tangents)

    @function.defjvp
    def _(given: Any, tangents: Any) -> tuple[Any, Any]:
        found, given = with_given(*given)
        return found, jax.jvp(plain, given, tangents)[1]

    return function
