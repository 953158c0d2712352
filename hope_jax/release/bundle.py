"""Release bundles: a checkpoint with all that it needs and all that is known of it, in one sealed folder.

A bundle is laid out as a workdir is, so whatever reads a workdir reads a bundle:

    MANIFEST.txt         SHA-256 of every other file, as `sha256sum` writes and checks it
    metadata.json        format, version, the runs' identities, the same digests once more
    MODEL_CARD.md        the model in words and numbers
    checkpoints/<step>/  the checkpoint, its sidecars beside it
    config.yaml          resolved configuration; tokenizer.model: whatever data.tokenizer named
    weights.safetensors  the parameters under documented names (`weights.py`)
    metrics.jsonl, summary.json, report.html, loss.png   where the run has them
    baselines/<name>/    other runs, laid out alike
    evals/<name>/        results of evaluations, JSON, with their reports and plots

Everything in it is made from its sources alone: the same sources give the same bytes.
"""

import itertools
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from hope_jax.config.experiment import DataConfig
from hope_jax.core import files
from hope_jax.core.errors import BundleError, ConfigError
from hope_jax.core.paths import files_in
from hope_jax.data.synthetic import is_synthetic
from hope_jax.release import model_card
from hope_jax.storage import digests as manifest
from hope_jax.storage import seal, stored, weights
from hope_jax.storage.digests import BadFileError
from hope_jax.storage.stored import Verified
from hope_jax.storage.trained import load_tokenizer
from hope_jax.training import telemetry

FORMAT, VERSION = "hope_jax bundle", 1
METADATA_FILE = "metadata.json"
WEIGHTS_FILE, CARD_FILE = "weights.safetensors", "MODEL_CARD.md"

_LOGS = (files.METRICS_FILE, files.SUMMARY_FILE, files.REPORT_FILE, files.LOSS_FILE)
_REPORTS = ("report.html", "report.md", "plots/*.png")
_IDENTITY = (
    "step", "checkpoint_digest", "config_digest", "tokenizer_digest", "algorithm_mode", "versions",
    "git_revision",
)  # fmt: skip
"""What metadata.json repeats of a checkpoint's own metadata."""


class _Source(NamedTuple):
    """A verified checkpoint. folder: `checkpoints`. digest: of its arrays. tokenizer: serialized."""

    folder: Path
    step: int
    digest: str
    tokenizer: bytes


def write(
    out: Path, checkpoint: Path, baselines: Sequence[Path] = (), evals: Sequence[Path] = ()
) -> Verified:
    """Makes the bundle `out`, whole or not at all; the digest of the checkpoint's arrays, and how many files.

    checkpoint: a workdir (its newest checkpoint), one `checkpoints/<step>`, or a bundle; also baselines.
    evals: folders whose `.json` files, at any depth, are taken along, and the reports and plots of
    `hope_jax.evals.suite` beside them.

    Raises: ConfigError: `out` holds something already, or an evals folder has no JSON. BadFileError: the
        first bad file of a checkpoint. CheckpointError: no checkpoint, or another tokenizer than its own.
        DataError: no tokenizer. BundleError: `out` cannot be written.
    """
    out = out.resolve()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"--out={out} exists and is no empty folder; name another, or remove it first")
    results = [(folder, _results(folder)) for folder in evals]
    main = _source(checkpoint)
    others = dict(zip(_names(baselines, "baseline"), map(_source, baselines), strict=True))
    with _folder_in_place_of(out) as root:
        _copy_run(main, root)
        for name, source in others.items():
            _copy_run(source, root / files.BASELINE_DIR / name)
        for name, (folder, paths) in zip(_names(evals, "evals"), results, strict=True):
            for path in paths:
                _copy(path, root / files.EVAL_DIR / name / path.relative_to(folder))
        copied = root / files.CHECKPOINT_DIR / str(main.step)
        loaded = stored.load_checkpoint(copied, ("params",), verify=False)
        weights.save(root / WEIGHTS_FILE, loaded.state["params"], main.step)
        files.write_atomic(root / CARD_FILE, model_card.render(root, loaded, list(others)))
        count = _seal(root)
    return Verified(main.digest, count)


def is_bundle(path: Path) -> bool:
    """Whether a folder is, or was, a bundle rather than a workdir."""
    names = (files.MANIFEST_FILE, METADATA_FILE, WEIGHTS_FILE, CARD_FILE)
    return any((path / name).exists() for name in names)


def verify(root: Path) -> Verified:
    """Recomputes everything in a bundle; nothing in it is trusted, and nothing outside is read.
    Raises: BadFileError: names the first bad file, by its path. CheckpointError: a checkpoint is
    unreadable."""
    root = root.absolute()
    listed = manifest.read_list(root / files.MANIFEST_FILE)
    there = [name for name in manifest.files_below(root, ".") if name != files.MANIFEST_FILE]
    manifest.check(root, listed, there, root, strict=True)
    for name in (METADATA_FILE, WEIGHTS_FILE, CARD_FILE, files.CONFIG_FILE, files.TOKENIZER_FILE):
        if name not in listed:
            raise BadFileError(root / name, "is missing")
    about = root / METADATA_FILE
    metadata = manifest.read_metadata(about, FORMAT, VERSION, "metadata of a bundle")
    step, *_ = [_check_run(root / folder) for folder in ("", *_baseline_folders(listed))]
    for key, value in _described(root, listed).items():
        found = metadata.get(key)
        # The text too: true equals 1.
        if found != value or json.dumps(found, sort_keys=True) != json.dumps(value, sort_keys=True):
            raise BadFileError(about, f"says something else under {key!r} than the bundle holds")
    newest = stored.load_checkpoint(root / files.CHECKPOINT_DIR / str(step), ("params",), verify=False)
    weights.check(root / WEIGHTS_FILE, newest.state["params"], step)
    return Verified(metadata["checkpoint"]["checkpoint_digest"], len(listed) + 1)


def _source(path: Path) -> _Source:
    """Verifies a checkpoint and reads what else its run needs."""
    folder, step = stored.resolve(path.absolute())
    digest = stored.verify_checkpoint(folder, step).digest
    data = yaml.safe_load(manifest.read_text(folder / f"{step}.yaml"))["data"]
    if is_synthetic(data["source"]):
        raise BundleError(
            f"{path} was trained on symbols (data.source={data['source']!r}): there is no text that a "
            "released model could continue; bundle a checkpoint that was trained on text"
        )
    trained_with = seal.read_meta(folder, step)["tokenizer_digest"]
    tokenizer = load_tokenizer(folder / str(step), trained_with, DataConfig(tokenizer=data["tokenizer"]))
    return _Source(folder, step, digest, tokenizer.model)


def _names(paths: Sequence[Path], default: str) -> list[str]:
    """A folder name in the bundle for each path: its own, made plain, numbered where two are alike."""
    names: list[str] = []
    for path in paths:
        path = path.absolute()
        if stored.step_of(path) is not None:
            path = path.parent
        own = path.parent.name if path.name == files.CHECKPOINT_DIR else path.name
        plain = re.sub(r"[^A-Za-z0-9._-]+", "_", own).strip(".") or default
        free = (f"{plain}-{number}" if number > 1 else plain for number in itertools.count(1))
        names.append(next(name for name in free if name not in names))
    return names


def _results(folder: Path) -> list[Path]:
    paths = files_in(folder, "**/*.json") if folder.is_dir() else []
    if not paths:
        raise ConfigError(f"--evals={folder}: no folder with .json files; name one that an evaluation wrote")
    for path in paths:
        try:
            json.loads(manifest.read_text(path))
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"--evals={folder}: {path} is no JSON ({error}); remove it") from error
    folders = sorted({path.parent for path in paths} | {folder})
    return [*paths, *(p for f in folders for pattern in _REPORTS for p in files_in(f, pattern))]


@contextmanager
def _folder_in_place_of(out: Path) -> Iterator[Path]:
    """A new folder that becomes `out` when the block ends; after an exception nothing is left of it."""
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        _to_disk(temporary, *temporary.rglob("*"))
        os.replace(temporary, out)
        _to_disk(out.parent)
    except OSError as error:
        raise BundleError(
            f"--out={out}: the bundle could not be written ({error}); nothing of it was "
            "left. Make room or check the permissions, and run the same command again"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _to_disk(*paths: Path) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _copy_run(source: _Source, root: Path) -> None:
    """One run, laid out as its workdir is, with its tokenizer.
    Raises: BadFileError: a file is no longer what was verified: something wrote to the run meanwhile."""
    folder, step = source.folder, source.step
    sealed_by, target = seal.sidecars(folder, step)[-1], root / files.CHECKPOINT_DIR
    _copy(sealed_by, target / sealed_by.name)
    # and nothing else that lies there
    for name, digest in manifest.read_list(target / sealed_by.name).items():
        _copy(folder / name, target / name)
        if manifest.hash_file(target / name) != digest:
            raise BadFileError(folder / name, "changed while it was copied", "run it again")
    _copy(folder / f"{step}.yaml", root / files.CONFIG_FILE)
    (root / files.TOKENIZER_FILE).write_bytes(source.tokenizer)
    for name in _LOGS:
        if (folder.parent / name).is_file():
            _copy(folder.parent / name, root / name)


def _seal(root: Path) -> int:
    """Writes metadata.json and, last, MANIFEST.txt; how many files there are then."""
    names = manifest.files_below(root, ".")
    for name in names:
        if not manifest.can_hold(name):
            raise ConfigError(
                f"{name!r}: a list of digests cannot hold this name (control characters, a backslash, or no "
                "Unicode); rename the file"
            )
    digests = dict(manifest.hash_files(root, names))
    head = {"format": FORMAT, "version": VERSION, **_described(root, digests)}
    packaged = {"packaged_with": telemetry.versions(), "packaged_at_revision": telemetry.git_revision()}
    text = json.dumps({**head, **packaged}, indent=1, allow_nan=False) + "\n"
    files.write_atomic(root / METADATA_FILE, text)
    digests[METADATA_FILE] = manifest.hash_file(root / METADATA_FILE)
    files.write_atomic(root / files.MANIFEST_FILE, manifest.dump(sorted(digests.items())))
    return len(digests) + 1


def _described(root: Path, digests: Mapping[str, str]) -> dict[str, Any]:
    """What metadata.json says of the content, made from the content. digests: of all files, itself or not."""

    def identity(run: Path) -> dict[str, Any]:
        meta = seal.read_meta(run / files.CHECKPOINT_DIR, _only_step(run))
        return {key: meta.get(key) for key in _IDENTITY}

    return {
        "checkpoint": identity(root),
        "baselines": {Path(name).name: identity(root / name) for name in _baseline_folders(digests)},
        "evals": [name for name in sorted(digests) if name.startswith(f"{files.EVAL_DIR}/")],
        "files": {name: digest for name, digest in sorted(digests.items()) if name != METADATA_FILE},
    }


def _baseline_folders(names: Mapping[str, str]) -> list[str]:
    below = (name for name in names if name.startswith(f"{files.BASELINE_DIR}/"))
    return sorted({"/".join(name.split("/")[:2]) for name in below})


def _only_step(root: Path) -> int:
    """The step of a bundled run. Raises: BadFileError: it has none, or several."""
    folder = root / files.CHECKPOINT_DIR
    found = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    if len(found) != 1 or not re.fullmatch(r"[0-9]+", found[0].name):
        names = ", ".join(sorted(path.name for path in found)) or "no folder"
        raise BadFileError(folder, f"holds {names}, and a bundle's run has one checkpoint")
    return int(found[0].name)


def _check_run(run: Path) -> int:
    """Verifies one run of a bundle, which lies in the folder `run`; its step."""
    step, folder = _only_step(run), run / files.CHECKPOINT_DIR
    stored.verify_checkpoint(folder, step, strict=True)
    meta = seal.read_meta(folder, step)
    if manifest.hash_file(run / files.TOKENIZER_FILE) != meta.get("tokenizer_digest"):
        raise BadFileError(run / files.TOKENIZER_FILE, "is not the tokenizer that the run was trained with")
    if manifest.hash_file(run / files.CONFIG_FILE) != meta.get("config_digest"):
        raise BadFileError(run / files.CONFIG_FILE, "is not the configuration of the checkpoint")
    return step
