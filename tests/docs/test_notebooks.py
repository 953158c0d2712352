"""Committed notebooks are clean; notebooks/execute.py tells when a cell fails. .ci/run runs all of them."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_notebooks_have_no_outputs_and_no_machine_paths(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and not any(cell.outputs or cell.execution_count for cell in code)
    assert not any(cell.metadata for cell in notebook.cells)
    assert re.findall(r"(?<![\w.])/(?:home|root|tmp|work|usr|mnt|Users)/|[A-Z]:\\\\", path.read_text()) == []
    assert notebook.metadata.kernelspec.name == "python3"


@pytest.mark.parametrize(
    ("cell", "code"),
    [("import os; assert os.environ['HOPE_JAX_NOTEBOOK_SMALL'] == '1'; 6 * 7", 0), ("1 / 0", 1)],
    ids=["runs", "fails"],
)
def test_the_executor_fails_with_a_cell_and_keeps_the_copy(tmp_path: Path, cell: str, code: int) -> None:
    path = tmp_path / "made_up.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)]), path)
    before = path.read_bytes()
    command = [sys.executable, str(FOLDER / "execute.py"), str(path), f"--out={tmp_path / 'out'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    assert ("ZeroDivisionError" in done.stderr) == (code == 1)
    (copied,) = nbformat.read(tmp_path / "out" / path.name, as_version=4).cells
    assert [output.output_type for output in copied.outputs] == [["execute_result"], ["error"]][code]
    assert path.read_bytes() == before


def test_the_executor_refuses_a_notebook_that_is_not_there() -> None:
    done = subprocess.run(
        [sys.executable, str(FOLDER / "execute.py"), "no.ipynb"], capture_output=True, text=True
    )
    assert done.returncode == 2 and "no.ipynb" in done.stderr
