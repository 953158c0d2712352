"""Writes numbers.npz: `python -m tests.recorded.record FILE [CASE ...]`, in two processes.

Without names it records all cases; with names those, and keeps what the file has of others.
"""

import sys
import time
import zlib
from multiprocessing import get_context
from pathlib import Path

import jax
import numpy as np

from tests.recorded.cases import CASES
from tests.recorded.numbers import Numbers, numbers_of

FILE = Path(__file__).parent / "numbers.npz"
PROCESSES = 2


def save(path: Path, recorded: dict[str, Numbers]) -> None:
    """NAMES/CASE: float64 [n, 2], and NAMES: the n names as text; many cases share theirs."""
    arrays = {}
    for case, numbers in recorded.items():
        text = "\n".join(numbers).encode()
        names = f"{zlib.crc32(text):08x}"
        arrays[names] = np.frombuffer(text, np.uint8)
        arrays[f"{names}/{case}"] = np.stack(list(numbers.values()))
    np.savez_compressed(path, **arrays)


def load(path: Path = FILE) -> dict[str, Numbers]:
    """The numbers of every recorded case."""
    with np.load(path, allow_pickle=False) as arrays:
        names = {key: bytes(arrays[key]).decode().split("\n") for key in arrays.files if "/" not in key}
        cases = [key.split("/", 1) for key in arrays.files if "/" in key]
        return {case: dict(zip(names[key], arrays[f"{key}/{case}"], strict=True)) for key, case in cases}


def _timed(name: str) -> tuple[str, Numbers, float]:
    jax.config.update("jax_enable_x64", True)
    began = time.perf_counter()
    return name, numbers_of(CASES[name]), time.perf_counter() - began


def main() -> None:
    """Saves after every case."""
    path, names = Path(sys.argv[1]), sys.argv[2:]
    recorded = load(path) if names and path.exists() else {}
    # A fresh process now and then: compiled programs pile up.
    with get_context("spawn").Pool(PROCESSES, maxtasksperchild=16) as pool:
        for name, numbers, seconds in pool.imap(_timed, names or CASES):
            recorded[name] = numbers
            print(f"{name}: {len(numbers)} arrays, {seconds:.1f} s", flush=True)
            save(path, {case: recorded[case] for case in CASES if case in recorded})


if __name__ == "__main__":
    main()
