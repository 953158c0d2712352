"""Small mixtures for the tests of the building of shards."""

import json
import random
from pathlib import Path
from typing import Any

import yaml

from hope_jax.data.building import finish, recipe, stages, tasks
from hope_jax.data.shards import ShardRows, read_manifest
from hope_jax.data.tokenizer import Tokenizer

WORDS = (
    "the",
    "of",
    "and",
    "to",
    "in",
    "that",
    "was",
    "for",
    "on",
    "with",
    "they",
    "had",
    "from",
    "what",
    "but",
)


def text(seed: int, sentences: int = 6) -> str:
    """A made-up document."""
    rng = random.Random(seed)
    made = (" ".join(rng.choices(WORDS, k=9)).capitalize() + "." for _ in range(sentences))
    return f"Number {seed}. " + " ".join(made)


def write_jsonl(path: Path, documents: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": d}) + "\n" for d in documents))
    return path


def write_manifest(folder: Path, sources: dict[str, Any], **keys: Any) -> Path:
    """A manifest of text-like sources, whose weights are equal where they are not given."""
    equal = {"weight": 1 / len(sources), "reader": "jsonl"}
    raw = {
        "out": "shards", "tokenizer": "embedded", "row_tokens": 64, "statistics": "statistics.json",
        "sources": {name: {**equal, **source} for name, source in sources.items()}, **keys,
    }  # fmt: skip
    path = folder / "m.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return path


def build(path: Path, workers: int = 1) -> dict[str, Any]:
    """Builds in this process; the statistics."""
    planned = tasks.make_plan(recipe.load_manifest(path, {}))
    assert stages.run(planned, workers=workers)
    return finish.finish(planned)


def files(folder: Path) -> dict[str, bytes]:
    """Everything in the shard folders."""
    kept = (
        f for f in sorted(folder.rglob("*")) if f.is_file() and ".work" not in f.parts and f.name != ".lock"
    )
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in kept}


def texts(folder: Path, split: str) -> list[str]:
    """The documents in a folder of shards, in order."""
    found, rows = read_manifest(folder), []
    tokenizer, read = Tokenizer.load(), []
    reader = ShardRows(folder, found, split, found.row_tokens)  # type: ignore[arg-type]
    for i in range(len(reader)):
        tokens, numbers = reader[i]
        rows += [int(t) for t, n in zip(tokens[:-1], numbers[:-1], strict=True) if n]
        last = int(tokens[-1]) if numbers[-1] else None
    rows += [last] if rows and last is not None else []
    current: list[int] = []
    for token in rows:
        if token == tokenizer.bos_id:
            current = []
        elif token == tokenizer.eos_id:
            read.append(tokenizer.decode(current))
        else:
            current.append(token)
    return read
