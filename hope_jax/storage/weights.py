"""The parameters of a model as one safetensors file, under our dotted names, with a map of what they are.

The header's one metadata entry, `hope_jax`, is JSON: format, version, step, and for every array its axes and
what it is (`ARRAYS`). Arrays keep their type and their bits. The format holds no code.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from hope_jax.core.types import PyTree
from hope_jax.models import blocks
from hope_jax.storage import arrays
from hope_jax.storage.digests import BadFileError

FORMAT, VERSION = "hope_jax weights", 1
_KEY = "hope_jax"
"""One entry alone: safetensors does not order them, so with several, equal weights were not equal files."""


class ArrayKind(NamedTuple):
    """What the arrays of a name are. name: dotted; LEVEL stands for a level's name, {a,b} for either. axes:
    of the array; those of `blocks.*` come after the axis `layer`."""

    name: str
    axes: tuple[str, ...]
    what: str


ARRAYS = (
    ArrayKind("embed", ("vocab", "dim"), "rows of the tokens; the head too: logits = hidden @ embed.T"),
    ArrayKind("final_norm.{scale,bias}", ("dim",), "of the norm before the head"),
    ArrayKind("blocks.norm_{scale,bias}", ("dim",), "of the norm after attention and TITAN memory"),
    ArrayKind("blocks.attn.norm_{scale,bias}", ("dim",), "of attention's norm"),
    ArrayKind("blocks.attn.conv", ("window", "dim"), "causal depthwise taps, the last on the current token"),
    ArrayKind("blocks.attn.w_{q,k,v}", ("in", "out"), "x @ w; out is heads times head width, head by head"),
    ArrayKind("blocks.attn.{q,k}_scale", ("head_dim",), "of the RMSNorm of queries, keys; all heads alike"),
    ArrayKind("blocks.attn.w_out", ("in", "out"), "x @ w, from the heads to the residual stream"),
    ArrayKind("blocks.mlp.norm_{scale,bias}", ("dim",), "of the MLP's norm"),
    ArrayKind("blocks.mlp.w_{up,gate}", ("dim", "hidden"), "x @ w; gate: SwiGLU's"),
    ArrayKind("blocks.mlp.w_down", ("hidden", "dim"), "x @ w"),
    *(
        ArrayKind(f"blocks.{name}", axes, what)
        for part in blocks.PARTS.values()
        for name, axes, what in part.arrays
    ),
)
"""Everything that the variants have in both styles."""


def kind_of(name: str) -> ArrayKind:
    """The entry of `ARRAYS` for a dotted name. Raises: KeyError: no parameter of ours."""
    for kind in ARRAYS:
        pattern = re.escape(kind.name).replace("LEVEL", r"[^.]+")
        either = re.sub(r"\\{(.*?)\\}", lambda m: f"({m[1].replace(',', '|')})", pattern)
        if re.fullmatch(either, name):
            return kind
    raise KeyError(f"{name} is in no entry of weights.ARRAYS")


def describe(name: str) -> dict[str, Any]:
    """What the header says of an array: all its `axes`, and `what` it is. Raises: KeyError."""
    kind = kind_of(name)
    stacked = ("layer",) if name.startswith("blocks.") else ()
    return {"axes": [*stacked, *kind.axes], "what": kind.what}


def save(path: Path, params: PyTree, step: int) -> str:
    """Writes the parameters of a checkpoint, as they are; returns the digest of the arrays (`arrays.digest`).
    params: nested dicts of arrays, of any type that safetensors knows (bfloat16 too).
    Raises: OSError: the file cannot be written. KeyError: an array that is no parameter of ours."""
    # Safetensors takes an array's memory as it lies.
    flat = {name: np.asarray(leaf, order="C") for name, leaf in arrays.named(params).items()}
    about = {name: describe(name) for name in sorted(flat)}
    header = {"format": FORMAT, "version": VERSION, "step": step, "arrays": about}
    try:
        save_file(flat, path, metadata={_KEY: json.dumps(header)})
    except SafetensorError as error:
        raise OSError(f"{path.name}: {error}") from error
    return arrays.digest(flat)


def load(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The header and the arrays of a file that `save` wrote.
    Raises: BadFileError: it is damaged, no safetensors file, or another's."""
    try:
        with safe_open(path, framework="np") as file:
            header = json.loads((file.metadata() or {}).get(_KEY, "null"))
            contents = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RecursionError, TypeError) as error:
        raise BadFileError(path.name, f"is no readable safetensors file ({error})") from error
    if not isinstance(header, dict) or (header.get("format"), header.get("version")) != (FORMAT, VERSION):
        raise BadFileError(path.name, f"is no {FORMAT} file of version {VERSION}")
    return header, contents


def check(path: Path, params: PyTree, step: int) -> None:
    """Holds a file against the parameters of the checkpoint that it was made from.
    Raises: BadFileError: another step or map, or an array that differs in name, type, shape or any bit."""
    header, found = load(path)
    wanted: Mapping[str, Any] = arrays.named(params)
    if header.get("step") != step:
        raise BadFileError(path.name, f"is of step {header.get('step')!r}, the checkpoint of {step}")
    for name in sorted({*wanted, *found}):
        if name not in found:
            raise BadFileError(path.name, f"lacks {name}")
        if name not in wanted:
            raise BadFileError(path.name, f"has {name}, which the checkpoint has not")
        theirs, ours = found[name], np.asarray(wanted[name])
        if (theirs.dtype, theirs.shape) != (ours.dtype, ours.shape) or theirs.tobytes() != ours.tobytes():
            raise BadFileError(path.name, f"has another {name} than the checkpoint")
