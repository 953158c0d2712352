"""Processes work off tasks; one that fails or is killed ends the build at once, by name."""

import os
import signal
import time
from pathlib import Path

import pytest

from hope_jax.core.errors import DataError
from hope_jax.data.building.stages import run_all


class Work:
    """Notes each task; `killed` dies as one does for want of memory, `wrong` raises."""

    def __init__(self, folder: Path, killed: int = -1, wrong: int = -1, slow: int = -1) -> None:
        self.folder, self.killed, self.wrong, self.slow = folder, killed, wrong, slow

    def __call__(self, task: int) -> None:
        if task == self.killed:
            os.kill(os.getpid(), signal.SIGKILL)
        if task == self.wrong:
            raise DataError("task of no use")
        time.sleep(600 if task == self.slow else 0)
        (self.folder / str(task)).write_text(str(os.getpid()))


def test_every_task_is_done_once_by_few_processes(tmp_path: Path) -> None:
    run_all(Work(tmp_path), range(7), 2)
    assert sorted(int(f.name) for f in tmp_path.iterdir()) == list(range(7))
    assert len({f.read_text() for f in tmp_path.iterdir()} - {str(os.getpid())}) <= 2


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"killed": 3}, r"task 3: its process was ended \(exit code -9; .* fewer --workers"),
        ({"wrong": 3}, "task of no use"),
    ],
)
def test_a_task_that_dies_or_fails_ends_all_the_others(
    tmp_path: Path, fault: dict[str, int], message: str
) -> None:
    began = time.monotonic()
    with pytest.raises(DataError, match=message):
        run_all(Work(tmp_path, slow=0, **fault), range(9), 2)
    assert time.monotonic() - began < 120  # not the 600 s of the other task
    assert sorted(f.name for f in tmp_path.iterdir()) == ["1", "2"]
    with pytest.raises(DataError, match=message):  # also where no other is left
        run_all(Work(tmp_path, **fault), [3], 2)
