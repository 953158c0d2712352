"""python -m hope_jax.compile_check: a row for what is asked, and its errors."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hope_jax.compile_check", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_a_row_says_what_the_program_calls() -> None:
    done = run("--topology=cpu:1", "--width=32", "newton_schulz", "xent_teach, bfloat16")
    assert done.returncode == 0, done.stderr
    head, *rows = done.stdout.splitlines()
    assert "compiled and not run" in head
    names = ["newton_schulz, float32", "newton_schulz, bfloat16", "xent_teach, bfloat16"]
    assert [row[:40].strip() for row in rows] == names
    assert all(row.endswith(" s  none") for row in rows)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [([], "--topology is missing"), (["--topology=cpu:1", "newtons"], "newtons: no row's name begins so")],
)
def test_errors_are_one_paragraph(arguments: list[str], words: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr
