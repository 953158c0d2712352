"""Steps behind the filters: kept documents to files and back; duplicates, which datatrove's ExactDedup and
MinHash find over the whole mixture, in the order of its tasks; and documents to packed rows in ArrayRecord
files, two files a task, with what is in them."""

import dataclasses
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from glob import escape
from pathlib import Path, PurePosixPath
from typing import Any

import orjson
import zstandard
from datatrove.data import Document
from datatrove.io import DataFolder
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import (
    ExactDedupConfig,
    ExactDedupFilter,
    ExactDedupSignature,
    ExactFindDedups,
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.utils.word_tokenizers import WordTokenizer
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

from hope_jax.core.files import write_atomic
from hope_jax.core.paths import is_left_behind
from hope_jax.data.building.readers import chunks, lines
from hope_jax.data.building.tasks import MOST_TASKS, Plan, Stage
from hope_jax.data.corpus import is_held_out, text_digest
from hope_jax.data.shards import SPLITS, RowWriter, ShardFile, sha256_of

SEAL = ".sha256"
"""Suffix of the file with the digest of a file of kept documents."""
_LONGEST_LINE = 2**31


class CleanWriter(PipelineStep):
    """Writes the kept documents of a task, without those of which filters left too little text, and their
    digest beside them when they are complete."""

    type, name = "writer", "kept documents"

    def __init__(self, folder: Path, min_characters: int) -> None:
        super().__init__()
        self.folder, self.min_characters = folder, min_characters

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Writes all documents of a task, and a file also where none is left; yields nothing."""
        path = self.folder / f"{rank:05d}.jsonl.zst"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(SEAL).unlink(missing_ok=True)
        with zstandard.open(path, "wb") as file:
            for document in data:
                if len(document.text.strip()) < self.min_characters:
                    self.stat_update("dropped_too_short_when_filtered")
                    continue
                row = {"text": document.text, "id": document.id}
                file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
        write_atomic(path.with_suffix(SEAL), sha256_of(path))
        yield from ()


class CleanReader(PipelineStep):
    """Reads the documents that a task of the mixture kept."""

    type, name = "reader", "kept documents"

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.files = [plan.clean_file(task) for task in range(plan.tasks)]

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Documents of one task, in order."""
        for line in lines(chunks(self.files[rank]), _LONGEST_LINE):
            row = orjson.loads(line or b"{}")
            yield Document(text=row["text"], id=row["id"], metadata={"task": rank})


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


# The earlier a document's task, the higher its priority: the first source that has a text keeps it.
_EXACT = ExactDedupConfig(lambda d: d.text, lambda d: MOST_TASKS - int(d.metadata["task"]))


def find_duplicates(plan: Plan, words: WordTokenizer) -> tuple[list[Stage], list[PipelineStep]]:
    """The stages that find the duplicates, in order, and the steps that leave these out; both are empty if
    nothing does."""
    dedup, folder = plan.mixture.dedup, plan.dedup
    stages: list[Stage] = []
    left_out: list[PipelineStep] = []

    def add(name: str, tasks: int, *work: PipelineStep) -> None:
        stages.append(Stage(name, folder, tasks, work))

    if dedup.exact:
        signatures, found = PlainFolder(folder / "exact-signatures"), PlainFolder(folder / "exact")
        add("exact-signatures", plan.tasks, CleanReader(plan), ExactDedupSignature(signatures, _EXACT))
        add("exact-find", 1, ExactFindDedups(signatures, found, _EXACT))
        left_out.append(ExactDedupFilter(found, _EXACT))
    if dedup.minhash is not None:
        config, found = MinhashConfig(**dedup.minhash), PlainFolder(folder / "minhash")
        parts = [PlainFolder(folder / f"minhash-{i}") for i in (1, 2)]
        signature = MinhashDedupSignature(parts[0], config, language=words)
        # After the exact duplicates: of two equal texts the one of the first source is to stay.
        add("minhash-signatures", plan.tasks, CleanReader(plan), *left_out, signature)
        add("minhash-buckets", config.num_buckets, MinhashDedupBuckets(*parts, config=config))
        add("minhash-cluster", 1, MinhashDedupCluster(parts[1], found, config))
        left_out.append(MinhashDedupFilter(found))
    return stages, left_out


@dataclass(frozen=True)
class TaskResult:
    """What a task made. files: of each split that got a document. characters: of each split's documents."""

    files: dict[str, ShardFile]
    characters: dict[str, int]


class ShardStep(PipelineStep):
    """Encodes documents, puts each on its side of the split, and writes the rows of a task. A file gets its
    name only after it is complete and its digest has been noted, so one that bears its name and has that
    digest is whole."""

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
            tokens = tokenizer.document(document.text)
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
    return plan.shards / "results" / f"{task:05d}.json"


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
