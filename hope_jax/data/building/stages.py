"""Runs a plan's stages on a datatrove executor: what is done and verified is skipped, the rest is done.

clean-<source>   read, filter                          -> kept documents of each task, with their digest
dedup            find duplicates over all sources      -> numbers of the documents to leave out
shards           leave out, encode, pack               -> shards, and what each task made
"""

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.writers.jsonl import JsonlWriter
from loguru import logger as datatrove_log

from hope_jax.core.errors import DataError
from hope_jax.core.paths import files_in
from hope_jax.data.building import dedup, filters, readers
from hope_jax.data.building.executors import Machine, make_executor, wait_for_tasks
from hope_jax.data.building.folders import PlainFolder
from hope_jax.data.building.shard_step import ShardStep, read_result, write_atomically
from hope_jax.data.building.tasks import Plan, PlannedSource
from hope_jax.data.building.workers import TaskKilled
from hope_jax.data.shards import MANIFEST, sha256_of

_LOG = logging.getLogger(__name__)
_SEAL = "sealed.json"


class CleanWriter(JsonlWriter):
    """Writes the kept documents of a task and, when they are complete, their digest beside them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(PlainFolder(folder), "${rank}.jsonl.zst", compression="zstd")
        self.folder = folder

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Writes all documents of a task; yields nothing."""
        path = self.folder / f"{rank:05d}.jsonl.zst"
        seal = path.with_suffix(".sha256")
        seal.unlink(missing_ok=True)
        self.output_mg.get_file(path.name)  # also where no document is left
        for _ in super().run(data, rank, world_size):
            pass
        write_atomically(seal, sha256_of(path))
        yield from ()

    def _default_adapter(self, document: Any) -> dict[str, str]:
        return {"text": document.text, "id": document.id}


@dataclass
class Stage:
    """Steps to run as `tasks` tasks, whose marks of completion are in `folder`."""

    name: str
    folder: Path
    steps: list[PipelineStep]
    tasks: int

    @property
    def logs(self) -> Path:
        """datatrove's folder of logs, statistics and marks of completion."""
        return self.folder / "logs" / self.name

    def done(self, task: int) -> bool:
        """Whether a task is marked as completed."""
        return self._mark(task).is_file()

    def undo(self, task: int) -> None:
        """Has a task run again."""
        self._mark(task).unlink(missing_ok=True)

    def _mark(self, task: int) -> Path:
        return self.logs / "completions" / f"{task:05d}"


def check_filters(plan: Plan) -> None:
    """Makes all filters once. Raises: ConfigError for options that do not fit."""
    words = filters.make_words(plan.mixture.words)
    for planned in plan.sources:
        filters.make_filters(planned.source, words)


def run(plan: Plan, machine: Machine) -> bool:
    """Runs what is not done. False if it was only handed to a cluster, and is to be called again later.

    Raises: UserError: of a step; nothing that looks finished is left.
    """
    shards = Stage("shards", plan.shards_folder, [], plan.tasks)
    missing = [task for task in range(plan.tasks) if not (shards.done(task) and _whole(plan, task))]
    for task in missing:
        if shards.done(task):
            _LOG.info(
                "%s: a shard of task %d, or its statistics, is missing or damaged: made again",
                *_named(plan, task),
            )
        shards.undo(task)
    if not missing:
        return True
    plan.work.mkdir(parents=True, exist_ok=True)
    wait_for_tasks(plan)
    # From here on no folder is finished until all are.
    for planned in plan.sources:
        (plan.mixture.out / planned.source.name / MANIFEST).unlink(missing_ok=True)
    if not machine.verbose:
        datatrove_log.remove()
    words = filters.make_words(plan.mixture.words)
    stages = [_clean_stage(plan, planned, words) for planned in plan.sources]
    stages += _dedup_stages(plan, words)
    shards.steps = [dedup.clean_reader(plan), *dedup.filters(plan), ShardStep(plan)]
    finished = _execute([*stages, shards], plan, machine)
    if finished:
        _seal(plan.dedup_folder)
    return finished


def _whole(plan: Plan, task: int) -> bool:
    """Whether the shards of a task and the statistics of how they came about are there and sound."""
    planned, index = plan.source_of(task)
    logs = ((clean_stage_logs(plan, planned), index), (shards_stage_logs(plan), task))
    return all(_has_statistics(*log) for log in logs) and read_result(plan, task) is not None


def _has_statistics(logs: Path, task: int) -> bool:
    try:
        return all({"name", "stats"} <= set(step) for step in read_statistics(logs, task))
    except (OSError, ValueError, TypeError):
        return False


def _named(plan: Plan, task: int) -> tuple[str, int]:
    planned, index = plan.source_of(task)
    return planned.source.name, index


def clean_stage_logs(plan: Plan, planned: PlannedSource) -> Path:
    """Where the statistics of a source's clean stage are."""
    return Stage("clean", plan.clean_folder(planned), [], planned.source.shards).logs


def shards_stage_logs(plan: Plan) -> Path:
    """Where the statistics of the shards' stage are."""
    return Stage("shards", plan.shards_folder, [], plan.tasks).logs


def _clean_stage(plan: Plan, planned: PlannedSource, words: Any) -> Stage:
    """Tasks whose documents are not as their digest says are undone."""
    source, folder = planned.source, plan.clean_folder(planned)
    stage = Stage("clean", folder, [], source.shards)
    for index in range(source.shards):
        path = plan.clean_file(planned.first + index)
        seal = path.with_suffix(".sha256")
        sound = path.is_file() and seal.is_file() and sha256_of(path) == seal.read_text()
        if not (sound and _has_statistics(stage.logs, index)):
            stage.undo(index)
    if all(stage.done(index) for index in range(source.shards)):
        return stage
    split = _split(source) if source.reader == "huggingface" else ""
    writer = CleanWriter(folder / "documents")
    stage.steps = [
        readers.make_reader(source, planned.files, split),
        *filters.make_filters(source, words),
        writer,
    ]
    return stage


def _split(source: Any) -> str:
    """The split to read: the fallback, loudly, where the wanted one is not there."""
    try:
        readers.load_rows(source, source.split)
        return str(source.split)
    except readers.NoSuchSplit as error:
        if source.fallback_split is None:
            raise DataError(
                f"sources.{source.name}.split={source.split!r}: {error}; mend it, or set fallback_split"
            ) from None
    _LOG.warning(
        "WARNING: sources.%s: %s has no split %r: reading %r, its fallback_split, instead",
        source.name, source.dataset, source.split, source.fallback_split,
    )  # fmt: skip
    try:
        readers.load_rows(source, source.fallback_split)
    except readers.NoSuchSplit as error:
        raise DataError(f"sources.{source.name}.fallback_split={source.fallback_split!r}: {error}") from None
    return str(source.fallback_split)


def _dedup_stages(plan: Plan, words: Any) -> list[Stage]:
    """The stages; their folder is emptied first if what they found is not as it was left."""
    folder, seal = plan.dedup_folder, plan.dedup_folder / _SEAL
    if seal.is_file() and _digests(folder) != json.loads(seal.read_text()):
        _LOG.info("duplicates: what was found is damaged: looked for again")
        shutil.rmtree(folder)
    return [Stage(name, folder, steps, tasks) for name, steps, tasks in dedup.stages(plan, words)]


def _seal(folder: Path) -> None:
    if folder.is_dir() and not (folder / _SEAL).is_file():
        write_atomically(folder / _SEAL, json.dumps(_digests(folder), sort_keys=True))


def _digests(folder: Path) -> dict[str, str]:
    results = [folder / "exact", folder / "minhash"]
    files = [f for result in results for f in files_in(result, "**/*")]
    return {f.relative_to(folder).as_posix(): sha256_of(f) for f in sorted(files)}


def _execute(stages: Sequence[Stage], plan: Plan, machine: Machine) -> bool:
    previous = None
    for stage in stages:
        to_do = sum(not stage.done(task) for task in range(stage.tasks))
        if not to_do:
            continue
        _LOG.info("%s: %d of %d tasks to do", _title(stage), to_do, stage.tasks)
        job = f"{plan.mixture.path.stem}-{stage.name}"
        executor = make_executor(stage.steps, stage.tasks, stage.logs, job, plan, machine, previous)
        try:
            executor.run()
        except TaskKilled as error:
            raise DataError(f"{_title(stage)}: {error}") from None
        if machine.kind == "slurm":
            previous = executor
        elif left := [task for task in range(stage.tasks) if not stage.done(task)]:
            raise DataError(f"{_title(stage)}: tasks {left} failed; see the logs in {stage.logs}")
    return previous is None


def _title(stage: Stage) -> str:
    return f"{stage.folder.name.rpartition('-')[0]}: {stage.name}"


def read_statistics(logs: Path, task: int) -> list[dict[str, Any]]:
    """datatrove's statistics of a task, one mapping a step."""
    found = orjson.loads((logs / "stats" / f"{task:05d}.json").read_bytes())
    return list(found)
