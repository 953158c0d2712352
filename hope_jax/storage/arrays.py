"""Trees of arrays by name: a flat form that files hold and digests are taken of, and the way back."""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from hope_jax.core.types import PyTree


def named(tree: PyTree) -> dict[str, Any]:
    """Dotted name -> leaf; alike for a live tree and for one that a file gave back as dicts and lists."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in flat}


def digest(arrays: Mapping[str, Any]) -> str:
    """Hex SHA-256 over names, dtypes, shapes and values, whatever their order and their file's layout."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        total.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        total.update(little.tobytes())
    return total.hexdigest()


def restore(like: PyTree, arrays: Mapping[str, Any]) -> PyTree:
    """The arrays in the structure of `like`, whose leaves need only `shape` and `dtype`.
    Raises: ValueError: the first name, shape or dtype that differs."""

    def described(leaf: Any) -> str:
        return "nothing" if leaf is None else f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"

    wanted = named(like)
    for name in {**wanted, **arrays}:
        there, here = (described(tree.get(name)) for tree in (arrays, wanted))
        if there != here:
            raise ValueError(f"{name}: want {here}, got {there}")
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in wanted])
