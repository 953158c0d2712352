"""Runs a plan's stages on a datatrove executor: what is done and verified is skipped, the rest is done.

clean-<source>   read, filter                          -> kept documents of each task, with their digest
dedup            find duplicates over all sources      -> numbers of the documents to leave out
shards           leave out, encode, pack               -> shards, and what each task made
"""

import contextlib
import functools
import importlib.util
import json
import logging
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from multiprocessing import connection
from typing import Any

import dill
from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from loguru import logger as datatrove_log

from hope_jax.core.errors import ConfigError, DataError
from hope_jax.core.files import write_atomic
from hope_jax.core.paths import files_in
from hope_jax.core.processes import end_with_parent
from hope_jax.data.building import filters, passes, readers
from hope_jax.data.building.recipe import Source
from hope_jax.data.building.tasks import Plan, PlannedSource, Stage
from hope_jax.data.shards import MANIFEST, sha256_of

_LOG = logging.getLogger(__name__)
_SEAL = "sealed.json"
START_METHOD = "forkserver"
"""Of worker processes: not fork, as this process may hold threads."""


class TaskKilled(DataError):
    """The process of a task was killed."""


def run(plan: Plan, kind: str = "local", workers: int = 1) -> bool:
    """Runs what is not done. False if it was only handed to a cluster, and is to be called again later. kind:
    local, slurm or ray. workers: tasks at once. Raises: UserError: of a step; nothing that looks finished is
    left."""
    shards = plan.shards_stage
    for task in sorted(set(range(plan.tasks)) - set(shards.to_do())):
        planned, index = plan.source_of(task)
        told = planned.stage.statistics(index) and shards.statistics(task)
        if not told or passes.read_result(plan, task) is None:
            _LOG.info(
                "%s: a shard of task %d, or its statistics, is missing or damaged: made again",
                *(planned.source.name, index),
            )
            shards.mark(task).unlink()
    if not shards.to_do():
        return True
    # From here on no folder is finished until all are.
    for planned in plan.sources:
        (plan.mixture.out / planned.source.name / MANIFEST).unlink(missing_ok=True)
    datatrove_log.remove()
    words = filters.make_words(plan.mixture.words)
    stages = [_prepared(plan, planned, words) for planned in plan.sources]
    folder, seal = plan.dedup, plan.dedup / _SEAL

    def digests() -> dict[str, str]:
        found = (f for result in ("exact", "minhash") for f in files_in(folder / result, "**/*"))
        return {f.relative_to(folder).as_posix(): sha256_of(f) for f in found}

    if seal.is_file() and digests() != json.loads(seal.read_text()):
        _LOG.info("duplicates: what was found is damaged: looked for again")
        shutil.rmtree(folder)
    dedup, left_out = passes.find_duplicates(plan, words)
    stages += dedup
    shards.work = [passes.CleanReader(plan), *left_out, passes.ShardStep(plan)]
    finished = _execute([*stages, shards], plan, kind, workers)
    if finished and folder.is_dir() and not seal.is_file():
        write_atomic(seal, json.dumps(digests(), sort_keys=True))
    return finished


def _prepared(plan: Plan, planned: PlannedSource, words: Any) -> Stage:
    """A source's clean stage. Tasks whose documents are not as their digest says are undone."""
    source, stage = planned.source, planned.stage
    for index in range(source.shards):
        path = plan.clean_file(planned.first + index)
        seal = path.with_suffix(passes.SEAL)
        sound = path.is_file() and seal.is_file() and sha256_of(path) == seal.read_text()
        if not (sound and stage.statistics(index)):
            stage.mark(index).unlink(missing_ok=True)
    if stage.to_do():
        split = _split(source) if source.reader == "huggingface" else ""
        reader = readers.Reader(source, planned.files, split)
        writer = passes.CleanWriter(stage.folder / "documents", source.min_characters)
        stage.work = [reader, *filters.make_filters(source, words), writer]
    return stage


def _split(source: Source) -> str:
    """The split to read: the fallback, loudly, where the wanted one is not there."""
    for key, split in (("split", source.split), ("fallback_split", source.fallback_split)):
        try:
            readers.load_rows(source, str(split))
            return str(split)
        except readers.NoSuchSplit as error:
            problem = f"sources.{source.name}.{key}={split!r}: {error}"
        if source.fallback_split is None:
            raise DataError(f"{problem}; mend it, or set fallback_split")
        if key == "split":
            _LOG.warning(
                "WARNING: sources.%s: %s has no split %r: reading %r, its fallback_split, instead",
                *(source.name, source.dataset, split, source.fallback_split),
            )
    raise DataError(problem)


def _execute(stages: Sequence[Stage], plan: Plan, kind: str, workers: int) -> bool:
    """Runs what is to be done of each stage. False if Slurm was told to. Raises: ConfigError: an argument or
    package that the kind of machine needs is missing; UserError: of a step."""
    previous = None
    for stage in stages:
        if not (tasks := stage.to_do()):
            continue
        _LOG.info("%s: %d of %d tasks to do", stage.title, len(tasks), stage.tasks)
        executor = _make_executor(stage, plan, kind, workers, previous)
        if kind == "local":
            # datatrove's own `run` keeps a manager process, which outlives a process that is killed, and a
            # pool that waits for ever for the task of a worker that was.
            work = functools.partial(_run_task, dill.dumps(executor))
            try:
                run_all(work, tasks, executor.workers)
            except TaskKilled as error:
                raise TaskKilled(f"{stage.title}: {error}") from None
        else:
            executor.run()
        if kind == "slurm":
            previous = executor
        elif left := stage.to_do():
            raise DataError(f"{stage.title}: tasks {left} failed; see the logs in {stage.logs}")
    return previous is None


def _make_executor(
    stage: Stage, plan: Plan, kind: str, workers: int, previous: PipelineExecutor | None
) -> PipelineExecutor:
    """previous: of the Slurm job that this one waits for."""
    common: dict[str, Any] = {
        "pipeline": list(stage.work), "tasks": stage.tasks, "workers": workers,
        "logging_dir": passes.PlainFolder(stage.logs),
    }  # fmt: skip
    if kind == "slurm":
        wanted = {"job_name": f"{plan.mixture.path.stem}-{stage.name}", **plan.mixture.slurm}
        if not {"time", "partition"} <= set(wanted):
            raise ConfigError(
                f"{plan.mixture.path}: slurm: want at least `time` and `partition` for --executor=slurm"
            )
        return SlurmPipelineExecutor(depends=previous, **common, **wanted)
    common["workers"] = min(workers, stage.tasks)
    if kind == "ray":
        if importlib.util.find_spec("ray") is None:
            raise ConfigError("--executor=ray: ray is not installed; pip install ray")
        return RayPipelineExecutor(**common, **plan.mixture.ray)
    return LocalPipelineExecutor(**common)


def run_all(work: Callable[[int], Any], tasks: Iterable[int], processes: int) -> None:
    """Calls `work` with each task, in processes that end with this one, also where it is killed; one is this
    one itself. The first exception ends them and is raised. A pool does not know whose process died, or waits
    for it for ever. Raises: TaskKilled: by its number."""
    if processes == 1:
        for task in tasks:
            work(task)
        return
    context: Any = multiprocessing.get_context(START_METHOD)
    left = list(tasks)[::-1]
    started: list[Any] = []
    idle: list[tuple[Any, Any]] = []  # pipes, and their processes
    running: dict[Any, tuple[Any, int]] = {}  # by pipe: its process, and that one's task
    try:
        while left or running:
            while left and (idle or len(started) < processes):
                if not idle:
                    here, there = context.Pipe()
                    started.append(context.Process(target=_serve, args=(work, there), daemon=True))
                    started[-1].start()
                    there.close()  # so that the process's end is the pipe's
                    idle.append((here, started[-1]))
                pipe, process = idle.pop()
                running[pipe] = (process, left.pop())
                # A dead process is found by what its pipe says.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    pipe.send(running[pipe][1])
            heard: list[Any] = connection.wait(list(running))
            for pipe in heard:
                process, task = running.pop(pipe)
                try:
                    error = pipe.recv()
                except (EOFError, ConnectionResetError):
                    process.join()
                    raise TaskKilled(
                        f"task {task}: its process was ended (exit code {process.exitcode}; -9 is often for "
                        "want of memory); run again, with fewer --workers perhaps: what is done stays"
                    ) from None
                if error is not None:
                    raise error
                idle.append((pipe, process))
    finally:  # what is idle is done; what runs, if anything does, is of no use any more
        for process in started:
            process.terminate()
        for process in started:
            process.join()


def _serve(work: Callable[[int], Any], pipe: Any) -> None:
    end_with_parent()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the other end is gone
        while True:
            task, error = pipe.recv(), None
            try:
                work(task)
            except Exception as raised:
                error = raised
            try:
                pipe.send(error)
            except OSError:
                raise
            except Exception:  # one that cannot be sent
                pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))


def _run_task(packed: bytes, task: int) -> None:
    # It sets up its log anew for each task, on whatever is the standard error then.
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        try:
            dill.loads(packed)._run_for_rank(task)
        finally:
            datatrove_log.remove()
