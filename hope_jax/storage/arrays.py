"""Trees of arrays by name: a flat form that files hold and digests are taken of, and the way back.

The files are safetensors, with one metadata entry `hope_jax`, a JSON object that says what the arrays are.
Arrays keep their type and their bits. The format holds no code.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from hope_jax.core.types import PyTree

_KEY = "hope_jax"
"""One entry alone: safetensors does not order them, so with several, equal arrays were not equal files."""


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


def dump(arrays: Mapping[str, Any], header: Mapping[str, Any]) -> bytes:
    """A file of arrays by name, with what the header says of them."""
    # Safetensors takes an array's memory as it lies.
    flat = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    return safetensors.numpy.save(flat, {_KEY: json.dumps(header)})


def load(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The header and the arrays of a file that `dump` made.
    Raises: OSError. ValueError: the file is damaged, no safetensors file, or another's."""
    path.open("rb").close()  # of what cannot be opened, a folder too, safetensors says less
    try:
        with safe_open(path, framework="np") as file:
            header = json.loads((file.metadata() or {})[_KEY])
            contents = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except KeyError:
        raise ValueError(f"no entry {_KEY!r} in its metadata") from None
    except (SafetensorError, OSError, RecursionError, TypeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    if not isinstance(header, dict):
        raise ValueError(f"its entry {_KEY!r} is no JSON object")
    return header, contents
