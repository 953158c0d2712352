"""Golden files: loading, and comparing so that no recorded number is left out silently.

A file holds `config` (JSON), `in.*` inputs, `w.*` weights under torch names, and `out.*` results.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).parent / "data"
TOLERANCE = 1e-9


class GoldenMismatch(AssertionError):
    """A computed value differs from the recorded one, or a recorded one was never compared."""


@dataclass
class Golden:
    """One golden file.

    config: its hyper-parameters. inputs, weights: arrays under their names without the prefix.
    outputs: arrays (float64 or integers) or, for statistics, the parsed JSON.
    """

    name: str
    config: dict[str, Any]
    inputs: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]
    outputs: dict[str, Any]
    pending: set[str] = field(default_factory=set)

    def under(self, prefix: str) -> dict[str, Any]:
        """Outputs whose names start with `prefix` and a dot, under the rest of the name."""
        return {k[len(prefix) + 1 :]: v for k, v in self.outputs.items() if k.startswith(prefix + ".")}

    def compare(self, name: str, value: Any, tolerance: float = TOLERANCE) -> None:
        """Compare one output: absolute difference at most `tolerance` times max(1, largest magnitude)."""
        self.pending.discard(name)
        wanted = self.outputs[name]
        if isinstance(wanted, dict):
            if set(wanted) != set(value):
                raise GoldenMismatch(f"{self.name}: {name}: keys {sorted(value)}, recorded {sorted(wanted)}")
            for key in wanted:
                self._check(f"{name}[{key}]", value[key], wanted[key], tolerance)
        else:
            self._check(name, value, wanted, tolerance)

    def _check(self, name: str, value: Any, wanted: Any, tolerance: float) -> None:
        got, recorded = np.asarray(value), np.asarray(wanted)
        if got.shape != recorded.shape:
            raise GoldenMismatch(f"{self.name}: {name}: shape {got.shape}, recorded {recorded.shape}")
        if got.dtype not in (np.float64, np.int64, np.int32, np.bool_):
            raise GoldenMismatch(f"{self.name}: {name}: computed in {got.dtype}, not in double precision")
        gap = float(np.max(np.abs(got.astype(float) - recorded), initial=0.0))
        bound = tolerance * max(1.0, float(np.max(np.abs(recorded), initial=0.0)))
        if not gap <= bound:
            raise GoldenMismatch(f"{self.name}: {name}: largest difference {gap:.3e}, allowed {bound:.1e}")

    def leave_out(self, name: str, reason: str) -> None:
        """Declare that an output is not compared, and why."""
        if not reason:
            raise ValueError(f"{name}: an output may only be left out for a stated reason")
        self.pending.remove(name)

    def finish(self) -> None:
        """Fail if an output was neither compared nor left out for a reason."""
        if self.pending:
            raise GoldenMismatch(f"{self.name}: never compared: {', '.join(sorted(self.pending))}")


def load_golden(path: str | os.PathLike[str]) -> Golden:
    """Read one file. Raises ValueError on an entry that is none of config, in, w, out."""
    path = Path(path)
    golden = Golden(path.stem, {}, {}, {}, {})
    with np.load(path, allow_pickle=False) as entries:
        for key in entries.files:
            array = entries[key]
            kind, _, rest = key.partition(".")
            value = json.loads(str(array)) if array.dtype.kind in "US" else array
            if kind == "config":
                golden.config = value
            elif kind in ("in", "w", "out"):
                {"in": golden.inputs, "w": golden.weights, "out": golden.outputs}[kind][rest] = value
            else:
                raise ValueError(f"{path.name}: unknown entry {key!r}")
    golden.pending = set(golden.outputs)
    return golden


def golden(name: str) -> Golden:
    """One of the files kept here, by name."""
    return load_golden(DATA / f"{name}.npz")
