"""Runs to be bundled, and bundles that are changed."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from hope_jax.data.tokenizer import Tokenizer
from hope_jax.release import bundle
from hope_jax.storage import digests as manifest
from hope_jax.storage.digests import BadFileError
from hope_jax.training import telemetry
from tests.checkpoints import save_small, small_config

LOGS = ("metrics.jsonl", "summary.json", "report.html", "loss.png")
ROWS = [
    {"step": 1, "loss": 6.25},
    {"step": 2, "loss": 5.5, "eval_loss": 5.75, "unigram_entropy": 6.125},
    {"step": 9, "loss": 0.125, "eval_loss": 0.25},
]


class Runs(NamedTuple):
    """The workdirs of a model and its baseline, and evaluations."""

    main: Path
    titan: Path
    evals: Path


@contextmanager
def one_revision() -> Iterator[None]:
    """Bundles agree also where someone commits meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(telemetry, "git_revision", lambda: "0" * 40)
        yield


def save_run(workdir: Path, tokenizer: Path, **model: Any) -> Path:
    """A checkpoint, and the logs of a run that went on after it."""
    tokenizer.write_bytes(Tokenizer.load("embedded").model)
    config = small_config(model=model)
    save_small(workdir, replace(config, data=replace(config.data, tokenizer=str(tokenizer))))
    for name in LOGS:
        (workdir / name).write_text(name)
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return workdir


def contents(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def reseal(root: Path, **metadata: Any) -> None:
    """Honest lists over whatever the folder holds; `metadata` changes that file."""
    meta = json.loads((root / "metadata.json").read_text())
    names = [n for n in manifest.files_below(root, ".") if n not in ("MANIFEST.txt", "metadata.json")]
    meta = {**meta, "files": dict(manifest.hash_files(root, names)), **metadata}
    (root / "metadata.json").write_text(json.dumps(meta))
    digests = list(manifest.hash_files(root, sorted([*names, "metadata.json"])))
    (root / "MANIFEST.txt").write_text(manifest.dump(digests))


def first_bad(root: Path) -> str:
    with pytest.raises(BadFileError) as caught:
        bundle.verify(root)
    return Path(caught.value.path).relative_to(root).as_posix()
