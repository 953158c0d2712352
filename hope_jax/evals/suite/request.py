"""What a suite is asked for, and all that can be known to be wrong with it before anything is computed."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import yaml

from hope_jax.config import assemble
from hope_jax.config.values import resolve
from hope_jax.core.errors import ConfigError
from hope_jax.evals.reading.memorize import Rule
from hope_jax.evals.reading.selective import check_selection
from hope_jax.evals.reading.subject import checkpoint_paths
from hope_jax.evals.suite.run import Asked
from hope_jax.release import bundle
from hope_jax.storage import digests as manifest
from hope_jax.storage import stored


@dataclass(frozen=True, kw_only=True)
class Plan(Asked):
    """checkpoints, baseline: paths as a user gives them. out: the folder of the results. names: of
    evaluations. all_checkpoints: of a workdir all, not its newest."""

    checkpoints: tuple[Path, ...]
    out: Path
    names: tuple[str, ...]
    baseline: Path | None = None
    all_checkpoints: bool = False


class Target(NamedTuple):
    """A checkpoint to evaluate. path: of `checkpoints/<step>`. name: of its run and step. out: its folder."""

    path: Path
    name: str
    out: Path


class Targets(NamedTuple):
    """What a plan evaluates."""

    checkpoints: tuple[Target, ...]
    baseline: Target | None


def resolved(plan: Plan) -> Targets:
    """The checkpoints that a plan names, none verified yet. One checkpoint's results lie in `out` itself,
    those of several in a folder each, the baseline's in `out/baseline`.

    Raises:
      CheckpointError: a path names none.
    """
    paths: list[Path] = []
    for given in plan.checkpoints:
        found = checkpoint_paths(given) if plan.all_checkpoints else [_resolve(given)]
        paths += [path for path in found if path not in paths]
    names = [_name(path) for path in paths]
    folders = _folders(names)
    several = len(paths) > 1
    targets = tuple(
        Target(path, name, plan.out / folder if several else plan.out)
        for path, name, folder in zip(paths, names, folders, strict=True)
    )
    if plan.baseline is None:
        return Targets(targets, None)
    path = _resolve(plan.baseline)
    return Targets(targets, Target(path, _name(path), plan.out / "baseline"))


def check(plan: Plan, targets: Targets) -> None:
    """Whether the checkpoints are what their digests say and have what is to be written, and whether the
    results can be written.

    Raises:
      ConfigError: a memory or a layer that a checkpoint does not have (the baseline's are those of them that
        it has), an `out` that cannot be written.
      BadFileError, CheckpointError: a checkpoint is damaged.
    """
    _check_folder(plan.out)
    for target in (*targets.checkpoints, *([targets.baseline] if targets.baseline else [])):
        folder = target.path.parent
        if bundle.is_bundle(folder.parent):
            bundle.verify(folder.parent)
        else:
            stored.verify_checkpoint(folder, int(target.path.name))
    for target in targets.checkpoints:
        _check_selection(target, plan.memorize)


def _check_selection(target: Target, rule: Rule) -> None:
    text = manifest.read_text(target.path.parent / f"{target.path.name}.yaml")
    model = assemble.streamer(resolve(yaml.safe_load(text))).model
    try:
        check_selection(model, rule.paths, rule.layers)
    except ConfigError as error:
        raise ConfigError(f"{error} ({target.name})") from None


def _check_folder(out: Path) -> None:
    probe = out / f".{os.getpid()}.tmp"
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"--out={out}: cannot be written ({error.strerror}); want a folder, there or to be made"
        ) from None


def _resolve(path: Path) -> Path:
    folder, step = stored.resolve(path.absolute())
    return folder / str(step)


def _name(path: Path) -> str:
    return f"{path.parent.parent.name}/{path.name}"


def _folders(names: list[str]) -> list[str]:
    """A plain folder name for each, numbered where two are alike."""
    found: list[str] = []
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-") or "checkpoint"
        own, number = plain, 2
        while own in found:
            own, number = f"{plain}-{number}", number + 1
        found.append(own)
    return found
