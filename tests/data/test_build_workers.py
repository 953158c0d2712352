"""Processes work off tasks; one that fails or is killed ends the build at once."""

import os
import signal
import time
from collections.abc import Iterable
from concurrent.futures.process import BrokenProcessPool
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


def done(work: Work, tasks: Iterable[int]) -> None:
    run_all(work, [(task,) for task in tasks], 2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "done").mkdir()
    return tmp_path / "done"


def test_every_task_is_done_once_by_few_processes(folder: Path) -> None:
    done(Work(folder), range(7))
    assert sorted(int(f.name) for f in folder.iterdir()) == list(range(7))
    assert len({f.read_text() for f in folder.iterdir()} - {str(os.getpid())}) <= 2


@pytest.mark.parametrize(("fault", "error"), [({"killed": 3}, BrokenProcessPool), ({"wrong": 3}, DataError)])
def test_a_task_that_dies_or_fails_ends_all_the_others(
    folder: Path, fault: dict[str, int], error: type[Exception]
) -> None:
    began = time.monotonic()
    with pytest.raises(error):
        done(Work(folder, slow=0, **fault), range(9))
    assert time.monotonic() - began < 120  # not the 600 s of the other task
    made = {f.name for f in folder.iterdir()}
    assert {"1", "2"} <= made and not made & {"0", "3"}
    with pytest.raises(error):  # also where no other is left
        done(Work(folder, **fault), [3])
