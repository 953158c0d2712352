"""What commands print reaches any terminal, and ends them in known ways where it cannot be written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from hope_jax import cli
from hope_jax.core.output import say

def main(argv):
    \"\"\"Prints.\"\"\"
    for _ in range(int(argv[0])):
        say("caf\\xe9 \\u65e5 \\ud800 x", end="")
    return int(argv[1])

cli.run_command(main)
"""


def run(arguments: str = "1 0", shell: str = "", **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = f'"$PYTHON" -c "$PROGRAM" {arguments} {shell}'
    known = {"PYTHON": sys.executable, "PROGRAM": PROGRAM, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        env={"PATH": os.environ["PATH"], **known, **environment},
        capture_output=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("encoding", "wanted"),
    [
        ("ascii", b"caf? ? ? x"),
        ("latin-1", b"caf\xe9 ? ? x"),
        ("utf-8", "caf\xe9 \u65e5 ? x".encode()),
        ("ascii:strict", b"caf? ? ? x"),
    ],
)
def test_what_an_output_cannot_show_is_replaced(encoding: str, wanted: bytes) -> None:
    done = run(PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stdout, done.stderr) == (0, wanted, b"")


def test_a_reader_that_goes_away_ends_a_command_quietly() -> None:
    done = run("100000 0", "| head -c 3")
    assert (done.returncode, done.stdout, done.stderr) == (141, b"caf", b"")


@pytest.mark.parametrize("code", [0, 3])
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_change_no_exit_code(closed: str, code: int) -> None:
    done = run(f"1 {code}", closed)
    assert done.returncode == code and not done.stderr
    assert done.stdout == (b"" if ">&-" in closed.replace("2>&-", "") else run().stdout)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("arguments", ["1 0", "1 3", "--help"])
def test_a_full_disk_is_one_clear_error(arguments: str) -> None:
    done = run(arguments, "> /dev/full")
    assert done.returncode == 1 and done.stderr.count(b"\n") == 1
    assert done.stderr.startswith(b"error: the output cannot be written (No space left on device); make room")


def test_an_error_keeps_its_code_where_it_cannot_be_told() -> None:
    assert run("x", "2>/dev/full").returncode == run("x").returncode == 1
    assert run("1 0 --no_such_flag", "2>&1 >/dev/null | head -c 0").returncode in (2, 141)
