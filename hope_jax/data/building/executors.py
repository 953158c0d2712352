"""Where tasks run: processes of this machine, Slurm, or Ray, by datatrove; and plain folders for it."""

import contextlib
import copy
import fcntl
import importlib.util
import logging
import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from glob import escape
from pathlib import Path, PurePosixPath
from typing import Any

import dill  # type: ignore[import-untyped]
from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from datatrove.io import DataFolder
from datatrove.pipeline.base import PipelineStep
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]
from loguru import logger as datatrove_log

from hope_jax.core.errors import ConfigError
from hope_jax.core.paths import is_left_behind
from hope_jax.data.building.tasks import Plan

_LOG = logging.getLogger(__name__)
_BUSY = "busy"
START_METHOD = "forkserver"
"""Of worker processes: not fork, as this process may hold threads."""


@dataclass(frozen=True)
class Machine:
    """Where to run. kind: local, slurm or ray. workers: tasks at once. verbose: show datatrove's own log."""

    kind: str = "local"
    workers: int = 1
    verbose: bool = False


class PlainFolder(DataFolder):
    """A local folder. datatrove's own takes brackets and stars in its path for a pattern, so that it finds no
    file there, and a double colon for a chain of file systems."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(str(path), LocalFileSystem())

    def glob(self, path: str, **options: Any) -> Any:
        """What fits a pattern below this folder, as fsspec has it."""
        found = self.fs.glob(f"{escape(self.path)}/{path}", **options)
        return {self._relpath(p): info for p, info in found.items()} if options.get("detail") else found

    def list_files(self, *arguments: Any, **options: Any) -> list[str]:
        """Files by path in this folder, sorted; none that an operating system left behind."""
        found = super().list_files(*arguments, **options)
        return [name for name in found if not is_left_behind(PurePosixPath(name))]


def make_executor(
    steps: list[PipelineStep],
    tasks: int,
    logs: Path,
    job: str,
    plan: Plan,
    machine: Machine,
    previous: PipelineExecutor | None,
) -> PipelineExecutor:
    """The executor that runs `steps` as tasks. job: name of a Slurm job, which waits for that of `previous`.

    Raises: ConfigError: an argument or package that this kind needs is missing.
    """
    common: dict[str, Any] = {"tasks": tasks, "logging_dir": PlainFolder(logs)}
    workers = min(machine.workers, tasks)
    if machine.kind == "slurm":
        wanted = {"job_name": job, **plan.mixture.slurm}
        if not {"time", "partition"} <= set(wanted):
            raise ConfigError(
                f"{plan.mixture.path}: slurm: want at least `time` and `partition` for --executor=slurm"
            )
        return SlurmPipelineExecutor(steps, workers=machine.workers, depends=previous, **common, **wanted)
    if machine.kind == "ray":
        if importlib.util.find_spec("ray") is None:
            raise ConfigError("--executor=ray: ray is not installed; pip install ray")
        return RayPipelineExecutor(steps, workers=workers, **common, **plan.mixture.ray)
    return LocalPipelineExecutor(steps, workers=workers, **common)


def run_local(executor: LocalPipelineExecutor, tasks: list[int], plan: Plan, verbose: bool) -> None:
    """Runs some tasks. One worker is this process.

    datatrove's own `run` keeps a manager process, which outlives a process that is killed, and a pool that
    waits for ever for the task of a worker that was. Raises: BrokenProcessPool: a worker was killed.
    """
    if executor.workers == 1:
        for task in tasks:
            _run_task(copy.deepcopy(executor), verbose, task)
    else:
        packed = dill.dumps(executor)
        run_all(_run_packed, [(packed, verbose, task) for task in tasks], executor.workers, plan.work / _BUSY)


def run_all(work: Callable[..., Any], calls: list[tuple[Any, ...]], processes: int, busy: Path) -> None:
    """Makes all calls of `work`, by some processes that hold a shared lock on `busy` and end with this one.

    The first exception ends the other processes and is raised. Raises: BrokenProcessPool: one was killed.
    """
    context = multiprocessing.get_context(START_METHOD)
    with ProcessPoolExecutor(processes, context, _start_worker, (busy,)) as pool:
        try:
            for done in as_completed([pool.submit(work, *call) for call in calls]):
                done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _run_packed(packed: bytes, verbose: bool, task: int) -> None:
    _run_task(dill.loads(packed), verbose, task)


def _run_task(executor: LocalPipelineExecutor, verbose: bool, task: int) -> None:
    if verbose:
        executor._run_for_rank(task)
        return
    try:
        # It sets up its log anew for each task, on whatever is the standard error then.
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            executor._run_for_rank(task)
    finally:
        datatrove_log.remove()


def _start_worker(busy: Path) -> None:
    lock = busy.open("a")
    fcntl.flock(lock, fcntl.LOCK_SH)
    threading.Thread(target=_end_with_parent, args=(lock,), daemon=True).start()


def _end_with_parent(lock: Any) -> None:
    """Also where that was killed; the lock is held until then."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    lock.close()
    os._exit(1)


def wait_for_tasks(plan: Plan) -> None:
    """Returns when no worker of an earlier build runs any more."""
    with (plan.work / _BUSY).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            _LOG.info("waiting for the last tasks of a build that was killed")
            fcntl.flock(lock, fcntl.LOCK_EX)
