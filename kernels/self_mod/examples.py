"""Examples in turn rather than at once, where that is faster."""

from collections.abc import Callable
from typing import Any

import jax


def in_turn(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of one example. A `vmap` over it runs the examples one after the other on CPU, where large
    products with a batch axis are slower than the same products in turn, and all at once elsewhere.

    The result has no derivative of its own: it is for the two halves of a `custom_vjp`, under `vmap`.
    """
    one = jax.custom_batching.custom_vmap(function)

    @one.def_vmap
    def over(size: int, batched: list[Any], *arguments: Any) -> tuple[Any, Any]:
        del size
        leaves, tree = jax.tree.flatten(arguments)
        which = jax.tree.leaves(batched)
        axes = jax.tree.unflatten(tree, [0 if there else None for there in which])

        def mapped(*leaves: jax.Array) -> Any:
            def at(own: list[jax.Array]) -> Any:
                rest = iter(own)
                merged = [next(rest) if there else leaf for there, leaf in zip(which, leaves, strict=True)]
                return function(*jax.tree.unflatten(tree, merged))

            return jax.lax.map(at, [leaf for there, leaf in zip(which, leaves, strict=True) if there])

        def together(*leaves: jax.Array) -> Any:
            return jax.vmap(function, in_axes=tuple(axes))(*jax.tree.unflatten(tree, leaves))

        out = jax.lax.platform_dependent(*leaves, cpu=mapped, default=together)
        return out, jax.tree.map(lambda _: True, out)

    return one
