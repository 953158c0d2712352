"""The parameters of a model as one safetensors file, under our dotted names, with a map of what they are.

The header (`arrays.dump`) holds format, version, step, and of every array its axes and what it is (`ARRAYS`).
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hope_jax.core.types import PyTree
from hope_jax.models import blocks
from hope_jax.storage import arrays
from hope_jax.storage.digests import BadFileError

FORMAT, VERSION = "hope_jax weights", 1


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
    flat = arrays.named(params)
    about = {name: describe(name) for name in sorted(flat)}
    header = {"format": FORMAT, "version": VERSION, "step": step, "arrays": about}
    path.write_bytes(arrays.dump(flat, header))
    return arrays.digest(flat)


def load(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The header and the arrays of a file that `save` wrote.
    Raises: BadFileError: it is damaged, no safetensors file, or another's."""
    try:
        header, contents = arrays.load(path)
    except (OSError, ValueError) as error:
        raise BadFileError(path, f"is no readable safetensors file ({error})") from error
    if (header.get("format"), header.get("version")) != (FORMAT, VERSION):
        raise BadFileError(path, f"is no {FORMAT} file of version {VERSION}")
    return header, contents


def check(path: Path, params: PyTree, step: int) -> None:
    """Holds a file against the parameters of the checkpoint that it was made from.
    Raises: BadFileError: another step or map, or an array that differs in name, type, shape or any bit."""
    header, found = load(path)
    if header.get("step") != step:
        raise BadFileError(path, f"is of step {header.get('step')!r}, the checkpoint of {step}")
    try:
        arrays.restore(params, found)
    except ValueError as error:
        raise BadFileError(path, f"does not hold the checkpoint's arrays: {error}") from error
    for name, wanted in arrays.named(params).items():
        if found[name].tobytes() != np.asarray(wanted).tobytes():
            raise BadFileError(path, f"has another {name} than the checkpoint")
