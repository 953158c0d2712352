"""Own steps behind the filters: kept documents to files and back, and documents to packed rows in ArrayRecord
files, two files a task, with what is in them."""

import dataclasses
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import zstandard
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from hope_jax.core.files import write_atomic
from hope_jax.data.building import streams
from hope_jax.data.building.tasks import Plan
from hope_jax.data.corpus import is_held_out, text_digest
from hope_jax.data.shards import SPLITS, RowWriter, ShardFile, sha256_of

_LONGEST_LINE = 2**31


class CleanWriter(PipelineStep):
    """Writes the kept documents of a task (not those of which filters left too little text) and, when they are
    complete, their digest beside them."""

    type, name = "writer", "kept documents"

    def __init__(self, folder: Path, min_characters: int) -> None:
        super().__init__()
        self.folder, self.min_characters = folder, min_characters

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Writes all documents of a task, and a file also where none is left; yields nothing."""
        path = self.folder / f"{rank:05d}.jsonl.zst"
        path.parent.mkdir(parents=True, exist_ok=True)
        seal_of(path).unlink(missing_ok=True)
        with zstandard.open(path, "wb") as file:
            for document in data:
                if len(document.text.strip()) < self.min_characters:
                    self.stat_update("dropped_too_short_when_filtered")
                    continue
                row = {"text": document.text, "id": document.id}
                file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
        write_atomic(seal_of(path), sha256_of(path))
        yield from ()


def seal_of(path: Path) -> Path:
    """The file with the digest of a file of kept documents."""
    return path.with_suffix(".sha256")


class CleanReader(PipelineStep):
    """Reads the documents that a task of the mixture kept."""

    type, name = "reader", "kept documents"

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.files = [plan.clean_file(task) for task in range(plan.tasks)]

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Documents of one task, in order."""
        for line in streams.lines(streams.chunks(self.files[rank]), _LONGEST_LINE):
            row = orjson.loads(line or b"{}")
            yield Document(text=row["text"], id=row["id"], metadata={"task": rank})


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
        self.plan = plan

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Consumes the task's documents; yields nothing."""
        mixture, tokenizer = self.plan.mixture, self.plan.tokenizer
        planned, index = self.plan.source_of(rank)
        folder = mixture.out / planned.source.name
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{index:05d}-of-{planned.source.shards:05d}.arrayrecord"
        paths = {split: folder / f"{split}-{name}" for split in SPLITS}
        parts = {split: path.with_suffix(".partial") for split, path in paths.items()}
        writers: dict[str, RowWriter] = {}
        characters = dict.fromkeys(paths, 0)
        for document in data:
            held = is_held_out(text_digest(document.text), mixture.holdout, mixture.salt)
            split = "heldout" if held else "train"
            ids = tokenizer.encode(document.text)
            tokens = np.concatenate([[tokenizer.bos_id], ids, [tokenizer.eos_id]])
            with _written(parts[split]):
                if split not in writers:
                    writers[split] = RowWriter(
                        parts[split], row_tokens=mixture.row_tokens, vocab_size=tokenizer.vocab_size,
                        pad_id=tokenizer.pad_id,
                    )  # fmt: skip
                writers[split].add(tokens, -len(tokens) % mixture.document_multiple)
            characters[split] += len(document.text)
        files = {}
        for split, writer in writers.items():
            with _written(parts[split]):
                files[split] = dataclasses.replace(writer.close(), name=paths[split].name)
            with parts[split].open("rb") as file:
                os.fsync(file.fileno())
        result = TaskResult(files, {split: characters[split] for split in files})
        write_atomic(_result_path(self.plan, rank), json.dumps(asdict(result), sort_keys=True))
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


def _result_path(plan: Plan, task: int) -> Path:
    return plan.shards_folder / "results" / f"{task:05d}.json"


def read_result(plan: Plan, task: int) -> TaskResult | None:
    """What a task made, if that is there and every file of it still has its digest; else None."""
    folder = plan.mixture.out / plan.source_of(task)[0].source.name
    try:
        raw = json.loads(_result_path(plan, task).read_text())
        files = {split: ShardFile(**file) for split, file in raw["files"].items()}
        sound = all(sha256_of(folder / file.name) == file.sha256 for file in files.values())
        return TaskResult(files, raw["characters"]) if sound else None
    except (OSError, ValueError, TypeError, KeyError):
        return None
