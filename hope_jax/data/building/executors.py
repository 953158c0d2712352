"""Where tasks run: processes of this machine, Slurm, or Ray, all by datatrove."""

import contextlib
import copy
import fcntl
import importlib.util
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from datatrove.pipeline.base import PipelineStep
from loguru import logger as datatrove_log

from hope_jax.core.errors import ConfigError
from hope_jax.data.building.folders import PlainFolder
from hope_jax.data.building.tasks import Plan
from hope_jax.data.building.workers import run_all

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


class LocalExecutor(LocalPipelineExecutor):
    """datatrove's local executor, quiet on the terminal unless `verbose`; one worker is this process.

    Its tasks hold a shared lock on `busy`: those of a build whose process was killed run on to their end, and
    the next build waits for them (`wait_for_tasks`).
    """

    def __init__(self, *args: Any, busy: Path, verbose: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.busy, self.verbose = busy, verbose

    def run(self) -> None:
        """Runs all tasks that are not marked as completed.

        Without the manager process of datatrove's own `run`, which outlives a process that is killed.
        """
        ranks = self.get_incomplete_ranks()
        if self.workers == 1:
            for rank in ranks:
                copy.deepcopy(self)._run_for_rank(rank)
            return
        run_all(self._run_for_rank, ranks, self.workers, START_METHOD)

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> Any:
        with self.busy.open("a") as lock, open(os.devnull, "w") as nowhere:
            fcntl.flock(lock, fcntl.LOCK_SH)
            # It sets up its log anew for each task, on whatever is the standard error then.
            hidden = contextlib.nullcontext() if self.verbose else contextlib.redirect_stderr(nowhere)
            with hidden:
                try:
                    return super()._run_for_rank(rank, local_rank, node_rank)
                finally:
                    if not self.verbose:
                        datatrove_log.remove()


def wait_for_tasks(plan: Plan) -> None:
    """Returns when no task of an earlier build runs any more."""
    with (plan.work / _BUSY).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            _LOG.info("waiting for the last tasks of a build that was killed")
            fcntl.flock(lock, fcntl.LOCK_EX)


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
    return LocalExecutor(steps, workers=workers, busy=plan.work / _BUSY, verbose=machine.verbose, **common)
