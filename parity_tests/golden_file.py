"""Golden files: loading, and comparing so that no recorded number is left out silently.

A file holds `config` (JSON), `in.*` inputs, `w.*` weights under torch names, and `out.*` results. A replay
compares every result, or leaves it out under the name of a deliberate difference; `finish` tells which it
was.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from parity_tests.difference_table import BY_NAME

DATA = Path(__file__).parent / "data"
TOLERANCE = 1e-9
"""Of an entry's largest recorded magnitude, in float64."""
FLOAT32_TOLERANCE = 1e-6
"""The same for numbers that the published code rounded to float32."""
SMALLEST_SCALE = 1e-3
"""Entries whose largest magnitude is below it are held to an absolute bound: they may be rounding alone."""

_SHOWN = 3


class GoldenMismatch(AssertionError):
    """A computed value differs from the recorded one, or a recorded one was never compared."""


class MissingEntry(KeyError):
    """The file does not have something that its replay needs."""

    def __str__(self) -> str:
        return str(self.args[0])


class Entries(dict[str, Any]):
    """Entries by name; asking for one that is not there raises MissingEntry, which names it in full."""

    def __init__(self, kind: str, entries: Mapping[str, Any] | None = None) -> None:
        super().__init__(entries or {})
        self.kind = kind

    def __missing__(self, key: str) -> Any:
        raise MissingEntry(f"the file has no {self.kind}.{key}")


@dataclass
class Golden:
    """One golden file and what a replay has found.

    config: its hyper-parameters. inputs, weights: arrays under their names without the prefix.
    outputs: arrays, or for statistics the parsed JSON. pending: outputs not dealt with yet.
    compared: number of outputs that were; parts: of parts of others. absolute, relative: their largest
    errors; an entry's relative error is its largest difference over its largest recorded magnitude. rounded:
    the largest absolute error of what was recorded in float32 or bfloat16. failures: what disagrees.
    left_out: outputs not compared, by difference. sizes: difference -> its measured size.
    """

    name: str
    config: Entries
    inputs: Entries
    weights: Entries
    outputs: Entries
    pending: set[str] = field(default_factory=set)
    compared: int = 0
    parts: int = 0
    absolute: float = 0.0
    relative: float = 0.0
    rounded: float | None = None
    failures: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    sizes: dict[str, float | None] = field(default_factory=dict)

    def under(self, prefix: str) -> dict[str, Any]:
        """Outputs whose names start with `prefix` and a dot, under the rest of the name."""
        return {k[len(prefix) + 1 :]: v for k, v in self.outputs.items() if k.startswith(prefix + ".")}

    def compare(self, name: str, value: Any, *, absolute: float | None = None) -> None:
        """Compare one output: differences at most the tolerance of its recorded type times its largest
        recorded magnitude, or at most `absolute`, where the format states that. A disagreement is kept for
        `finish`.
        """
        if name not in self.outputs:
            self.failures.append(f"{name}: the file does not have it")
            return
        if name in self.pending:
            self.pending.remove(name)
            self.compared += 1
        self._compare(name, value, self.outputs[name], absolute)

    def check(self, what: str, value: Any, recorded: Any) -> None:
        """Compare a part of an output, which stays pending."""
        self.parts += 1
        self._compare(what, value, recorded, None)

    def _compare(self, name: str, value: Any, recorded: Any, absolute: float | None) -> None:
        if isinstance(recorded, dict):
            if not isinstance(value, dict) or set(recorded) != set(value):
                self.failures.append(f"{name}: computed {_keys(value)}, recorded {_keys(recorded)}")
                return
            for key in recorded:
                self._compare(f"{name}[{key}]", value[key], recorded[key], absolute)
        elif isinstance(recorded, list):
            if not isinstance(value, list) or len(value) != len(recorded):
                self.failures.append(f"{name}: computed {value}, recorded {recorded}")
                return
            for i, (v, r) in enumerate(zip(value, recorded, strict=True)):
                self._compare(f"{name}[{i}]", v, r, absolute)
        elif recorded is None or isinstance(recorded, str):
            if value != recorded:
                self.failures.append(f"{name}: computed {value!r}, recorded {recorded!r}")
        else:
            self._compare_arrays(name, np.asarray(value), np.asarray(recorded), absolute)

    def _compare_arrays(
        self, name: str, got: np.ndarray, recorded: np.ndarray, absolute: float | None
    ) -> None:
        if got.shape != recorded.shape:
            self.failures.append(f"{name}: shape {got.shape}, recorded {recorded.shape}")
            return
        if got.dtype not in (np.float64, np.int64, np.int32, np.bool_):
            self.failures.append(f"{name}: computed in {got.dtype}, not in double precision")
            return
        gap, scale = largest_gap(got, recorded), float(np.max(np.abs(recorded), initial=0.0))
        in_double = absolute is None and recorded.dtype not in (np.float32, np.float16)
        bound = (TOLERANCE if in_double else FLOAT32_TOLERANCE) * max(SMALLEST_SCALE, scale)
        bound = bound if absolute is None else absolute
        if in_double:
            self.absolute = max(self.absolute, gap)
            self.relative = max(self.relative, gap / scale if gap and scale else gap)
        else:
            self.rounded = max(self.rounded or 0.0, gap)
        if not gap <= bound:
            self.failures.append(f"{name}: largest difference {gap:.3e}, allowed {bound:.1e}")

    def leave_out(self, name: str, difference: str) -> None:
        """Declare that an output is not compared, for a difference of the table."""
        self.differ(difference)
        self.pending.remove(name)
        self.left_out.setdefault(difference, []).append(name)

    def leave_rest(self, difference: str, names: Iterable[str] | None = None) -> None:
        """Leave out all pending outputs, or those of `names` that are pending."""
        for name in sorted(self.pending if names is None else self.pending & set(names)):
            self.leave_out(name, difference)

    def differ(self, difference: str, size: float | None = None) -> None:
        """Declare that a difference of the table shows in this file. size: how much it changes, largest."""
        if difference not in BY_NAME:
            raise ValueError(f"{difference!r} is not in parity_tests/difference_table.py")
        known = self.sizes.get(difference)
        self.sizes[difference] = size if known is None else max(known, size or 0.0)

    def finish(self) -> None:
        """Raise GoldenMismatch if something disagreed, or was neither compared nor left out."""
        found = list(self.failures)
        if self.pending:
            found.append(f"never compared: {_some(sorted(self.pending))}")
        if not (self.compared or self.left_out or found):
            found.append("the file records no results")
        if found:
            raise GoldenMismatch(f"{self.name}: {_some(found, '; ')}")


def largest_gap(got: np.ndarray, recorded: np.ndarray) -> float:
    """Largest absolute difference; infinities and NaN that agree count as 0."""
    got, recorded = got.astype(np.float64), recorded.astype(np.float64)
    with np.errstate(invalid="ignore"):
        gap = np.abs(got - recorded)
    same = (got == recorded) | (np.isnan(got) & np.isnan(recorded))
    return float(np.max(np.where(same, 0.0, gap), initial=0.0))


def _keys(value: Any) -> str:
    return f"keys {', '.join(sorted(value)) or 'none'}" if isinstance(value, dict) else repr(value)


def _some(parts: list[str], between: str = ", ") -> str:
    more = f"{between}and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else ""
    return between.join(parts[:_SHOWN]) + more


def load_golden(path: str | os.PathLike[str]) -> Golden:
    """Read one file. Raises ValueError on an entry that is none of config, in, w, out."""
    path = Path(path)
    kinds = {kind: Entries(kind) for kind in ("in", "w", "out")}
    config = Entries("config")
    with np.load(path, allow_pickle=False) as entries:
        for key in entries.files:
            array = entries[key]
            kind, _, rest = key.partition(".")
            if key == "config":
                config = json.loads(str(array), object_hook=lambda d: Entries("config", d))
            elif kind in kinds and rest:
                kinds[kind][rest] = _value(kind, array)
            else:
                raise ValueError(f"unknown entry {key!r}: want config, in.*, w.* or out.*")
    golden = Golden(path.stem, config, kinds["in"], kinds["w"], kinds["out"])
    golden.pending = set(golden.outputs)
    return golden


def _value(kind: str, array: np.ndarray) -> Any:
    """Statistics are JSON; whatever precision inputs and weights have, replays compute in double."""
    if array.dtype.kind in "US":
        return json.loads(str(array))
    return array.astype(np.float64) if array.dtype.kind == "f" and kind != "out" else array


def golden(name: str) -> Golden:
    """One of the files kept here, by name."""
    return load_golden(DATA / f"{name}.npz")
