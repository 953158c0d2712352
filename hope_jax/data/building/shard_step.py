"""The last step: documents to packed rows in ArrayRecord files, two files a task, and what is in them."""

import dataclasses
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.pipeline.base import PipelineStep

from hope_jax.core.errors import DataError
from hope_jax.data.building.tasks import Plan
from hope_jax.data.holdout import is_held_out, text_digest
from hope_jax.data.shards import RowWriter, ShardFile, sha256_of
from hope_jax.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class TaskResult:
    """What a task made. files: of each split that got a document. characters: of each split's documents."""

    files: dict[str, ShardFile]
    characters: dict[str, int]


class ShardStep(PipelineStep):
    """Encodes documents, puts each on its side of the split, and writes the rows of a task.

    A file gets its name only after it is complete and its digest has been noted, so one that bears its name
    and has that digest is whole.
    """

    type, name = "writer", "shards"

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        mixture = plan.mixture
        self.model, self.model_sha256 = mixture.tokenizer, plan.tokenizer.sha256
        self.row_tokens, self.multiple = mixture.row_tokens, mixture.document_multiple
        self.holdout, self.salt = mixture.holdout, mixture.salt
        self.folder = plan.shards_folder
        self.targets = []
        for task in range(plan.tasks):
            planned, index = plan.source_of(task)
            self.targets.append((mixture.out / planned.source.name, index, planned.source.shards))

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Consumes the task's documents; yields nothing."""
        tokenizer = Tokenizer.load(self.model)
        if tokenizer.sha256 != self.model_sha256:
            raise DataError(f"tokenizer: {self.model} has changed since the build began; start it again")
        folder, index, count = self.targets[rank]
        folder.mkdir(parents=True, exist_ok=True)
        paths = {split: folder / shard_name(split, index, count) for split in ("train", "heldout")}
        parts = {split: path.with_suffix(".partial") for split, path in paths.items()}
        writers: dict[str, RowWriter] = {}
        characters = dict.fromkeys(paths, 0)
        ends = ([tokenizer.bos_id], [tokenizer.eos_id])
        for document in data:
            held = is_held_out(text_digest(document.text), self.holdout, self.salt)
            split = "heldout" if held else "train"
            if split not in writers:
                with _written(parts[split]):
                    writers[split] = RowWriter(
                        parts[split], row_tokens=self.row_tokens, vocab_size=tokenizer.vocab_size,
                        pad_id=tokenizer.pad_id,
                    )  # fmt: skip
            tokens = np.concatenate([ends[0], tokenizer.encode(document.text), ends[1]])
            with _written(parts[split]):
                writers[split].add(tokens, -len(tokens) % self.multiple)
            characters[split] += len(document.text)
        files = {}
        for split, writer in writers.items():
            with _written(parts[split]):
                files[split] = dataclasses.replace(writer.close(), name=paths[split].name)
        for split in files:
            _flush(parts[split])
        result = TaskResult(files, {split: characters[split] for split in files})
        write_atomically(result_path(self.folder, rank), json.dumps(asdict(result), sort_keys=True))
        for split, path in paths.items():
            if split in files:
                os.replace(parts[split], path)
            else:
                path.unlink(missing_ok=True)
        yield from ()


@contextmanager
def _written(path: Path) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # what ArrayRecord's writer raises for whatever the disk says
        raise OSError(None, str(error).partition(";")[0], str(path)) from error


def shard_name(split: str, index: int, count: int) -> str:
    """Name of a shard's file."""
    return f"{split}-{index:05d}-of-{count:05d}.arrayrecord"


def result_path(folder: Path, task: int) -> Path:
    """Where a task says what it made."""
    return folder / "results" / f"{task:05d}.json"


def read_result(plan: Plan, task: int) -> TaskResult | None:
    """What a task made, if that is there and every file of it still has its digest; else None."""
    try:
        raw = json.loads(result_path(plan.shards_folder, task).read_text())
        files = {split: ShardFile(**file) for split, file in raw["files"].items()}
        result = TaskResult(files, raw["characters"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
    folder = plan.mixture.out / plan.source_of(task)[0].source.name
    for file in files.values():
        path = folder / file.name
        if not path.is_file() or path.stat().st_size != file.size or sha256_of(path) != file.sha256:
            return None
    return result


def write_atomically(path: Path, text: str) -> None:
    """A file with this text, or the old one: never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".partial")
    part.write_text(text, encoding="utf-8")
    _flush(part)
    os.replace(part, path)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
