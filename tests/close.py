"""Trees in double precision: parts of them, whether they are the same, a function with a slope everywhere."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def at(tree: Any, *index: int) -> Any:
    """Leaves at leading indices."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def assert_close(got: Any, wanted: Any, what: str, tolerance: float = 1e-9) -> None:
    """Same tree, leaves within `tolerance` times max(1, largest magnitude), in double precision."""
    assert jax.tree.structure(got) == jax.tree.structure(wanted), what
    for (path, a), b in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(wanted), strict=True):
        name = f"{what}{jax.tree_util.keystr(path)}"
        assert np.asarray(a).dtype == np.float64, f"{name}: computed in {np.asarray(a).dtype}"
        bound = tolerance * max(1.0, float(np.max(np.abs(b), initial=0.0)))
        np.testing.assert_allclose(a, b, rtol=0, atol=bound, err_msg=name)


def value(results: Any) -> Any:
    """A function of every number, with a slope at each."""
    leaves = jax.tree.leaves(results)
    return sum(jnp.sum(jnp.sin(leaf + jnp.arange(leaf.size).reshape(leaf.shape) % 7)) for leaf in leaves)
