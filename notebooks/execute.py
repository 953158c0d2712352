"""Execute notebooks and keep the executed copies: fails on the first cell that does.

python notebooks/execute.py [NOTEBOOK ...] [--out=DIR] [--full]

Without names: all of this folder. Each runs in a kernel of its own, in the folder that it stands in, at the
small size that HOPE_JAX_NOTEBOOK_SMALL=1 asks of it; --full runs it as a reader would. The copies with all
outputs appear in DIR (runs/notebooks); the notebooks themselves are not touched. Needs nbclient and ipykernel
(pip install 'hope_jax[dev]'). Exit codes: 0 all ran, 1 a cell failed, 2 wrong usage.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from hope_jax.core.errors import ConfigError
from hope_jax.core.paths import as_path

HERE = Path(__file__).parent
SMALL = "HOPE_JAX_NOTEBOOK_SMALL"
PATIENCE = 1200
"""Seconds for one cell."""


def execute(path: Path, out: Path) -> str | None:
    """Runs a notebook, writes the executed copy to `out`; returns what went wrong, if anything did."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=PATIENCE, resources={"metadata": {"path": str(path.parent)}})
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        return str(error)
    finally:
        out.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, out / path.name)
    return None


def _path(text: str) -> Path:
    try:
        return as_path("path", text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def main(arguments: list[str]) -> int:
    """The command; returns its exit code."""
    usage, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=usage, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("notebooks", nargs="*", type=_path, metavar="NOTEBOOK")
    parser.add_argument("--out", type=_path, default=HERE.parent / "runs" / "notebooks")
    parser.add_argument("--full", action="store_true")
    given = parser.parse_args(arguments)
    paths = given.notebooks or sorted(HERE.glob("*.ipynb"))
    for path in paths:
        if not path.is_file():
            parser.error(f"{path}: there is no such notebook")
    # Kernels inherit the environment.
    os.environ[SMALL] = "0" if given.full else "1"
    for path in paths:
        started = time.monotonic()
        problem = execute(path, given.out)
        if problem is not None:
            print(f"error: {path}: {problem}\n{given.out / path.name} holds all outputs", file=sys.stderr)
            return 1
        print(f"{path.name}: {time.monotonic() - started:.0f} s, executed copy: {given.out / path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
