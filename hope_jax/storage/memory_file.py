"""Saved memories: one file with all that a stream carries from one call to the next.

The arrays (`arrays.dump`) are fast state, carry (of the attention cache the filled part), the unfinished
chunk and the sums and statistics so far. The header names the model that the memory belongs to, and the
digest of all arrays, which does not depend on the file's layout; a SHA-256 closes the header.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax import __version__
from hope_jax.core.errors import MemoryFileError
from hope_jax.core.files import atomic_file
from hope_jax.core.types import PyTree
from hope_jax.learning.stream import Stream, Streamer
from hope_jax.storage import arrays

_FORMAT, _VERSION = "hope_jax memory", 3
_ELSEWHERE = "give the --checkpoint that wrote it, or start without it and read the text again"

Header = dict[str, Any]


class Owner(NamedTuple):
    """The model that a memory belongs to. chunk_size: N. spec: hex digest of the architecture and the teach
    rule. params: hex digest of the meta parameters."""

    chunk_size: int
    spec: str
    params: str


def owner_of(streamer: Streamer, params: PyTree) -> Owner:
    """Whose the memories of these streams are. Reads all parameters."""
    described = json.dumps([_described(streamer.model.spec), _described(streamer.rule)], sort_keys=True)
    spec = hashlib.sha256(described.encode()).hexdigest()
    return Owner(streamer.rule.chunk_size, spec, arrays.digest(arrays.named(params)))


def save_memory(path: Path, streamer: Streamer, stream: Stream, owner: Owner) -> str:
    """Writes `stream` to `path`, whole or not at all; returns the digest of its arrays.
    Raises: MemoryFileError: the file cannot be written; what `path` held before is still there."""
    contents = arrays.named(streamer.resized(stream, 0))
    header: Header = {
        "format": _FORMAT,
        "version": _VERSION,
        "written_by": __version__,
        **owner._asdict(),
        "batch_size": len(stream.chunk.tokens),
        "start": int(stream.chunk.start),
        "position": stream.position,
        "digest": arrays.digest(contents),
    }
    header["sha256"] = _seal(header)
    try:
        with atomic_file(path) as file:
            file.write(arrays.dump(contents, header))
    except OSError as error:
        raise MemoryFileError(
            f"{path}: the memory cannot be written ({error.strerror or error}); make room, check the "
            "permissions, or name another file"
        ) from error
    return str(header["digest"])


def load_memory(path: Path, streamer: Streamer, params: PyTree, owner: Owner) -> Stream:
    """The stream that `save_memory` wrote; its attention cache has room for what it holds. params: as `owner`
    was made of.
    Raises: MemoryFileError: no such file, no memory file, a damaged one, or the memory of another model."""
    header, contents = _read(path)
    if header["chunk_size"] != owner.chunk_size:
        raise MemoryFileError(
            f"{path}: its unfinished chunk is one of {header['chunk_size']} tokens, and this model streams "
            f"in chunks of {owner.chunk_size}; {_ELSEWHERE}"
        )
    for name, what in (("spec", "another architecture"), ("params", "other parameters")):
        old, new = header[name], getattr(owner, name)
        if old != new:
            raise MemoryFileError(f"{path} is a memory of {what} (digest {old}, here {new}); {_ELSEWHERE}")
    like = jax.eval_shape(lambda p: streamer.begin(p, header["batch_size"], header["start"]), params)
    try:
        stream = arrays.restore(like, contents)
    except ValueError as error:
        raise MemoryFileError(f"{path} does not fit this model: {error}; {_ELSEWHERE}") from error
    on_device: Stream = jax.tree.map(jnp.asarray, stream)
    return on_device._replace(chunk=stream.chunk)


def digest(path: Path) -> str:
    """The digest of a saved memory's arrays, all of them read and checked. Raises: MemoryFileError."""
    return str(_read(path)[0]["digest"])


def _read(path: Path) -> tuple[Header, dict[str, np.ndarray]]:
    """Header and arrays, checked against each other."""
    try:
        header, contents = arrays.load(path)
    except OSError as error:
        raise MemoryFileError(
            f"{path}: cannot be read ({error.strerror or error}); name a file that --save_memory wrote"
        ) from error
    except ValueError as error:
        raise MemoryFileError(
            f"{path} is no memory file, or one that is damaged or cut short ({error}); name one that "
            "--save_memory wrote, or restore it from a copy"
        ) from error
    if header.get("format") != _FORMAT:
        raise MemoryFileError(f"{path} is another file, no memory file; name one that --save_memory wrote")
    if header.get("version") != _VERSION:
        raise MemoryFileError(
            f"{path} is a memory file of format {header.get('version')} and this package reads {_VERSION}; "
            f"use hope_jax {header.get('written_by')}"
        )
    if header.get("sha256") != _seal(header):
        raise MemoryFileError(f"{path} is damaged: its header was changed; restore it from a copy")
    found = arrays.digest(contents)
    if found != header["digest"]:
        problem = f"its arrays have digest {found}, its header says {header['digest']}"
        raise MemoryFileError(f"{path} is damaged: {problem}; restore it from a copy")
    return header, contents


def _seal(header: Header) -> str:
    sealed = {key: value for key, value in header.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(sealed, sort_keys=True).encode()).hexdigest()


def _described(value: Any) -> Any:
    """Constants as JSON, without those that have their default: a new option leaves old digests alone."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [(f.name, getattr(value, f.name), f.default) for f in dataclasses.fields(value)]
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        defaults = getattr(value, "_field_defaults", {})
        named = dict(zip(getattr(value, "_fields", ()), value, strict=True))
        fields = [(name, item, defaults.get(name, ...)) for name, item in named.items()]
    elif isinstance(value, Mapping):
        return [[name, _described(item)] for name, item in value.items()]
    elif isinstance(value, tuple):
        return [_described(item) for item in value]
    else:
        return value.name if isinstance(value, np.dtype) else value
    return {name: _described(item) for name, item, default in fields if item != default}
