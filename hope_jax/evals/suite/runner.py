"""Runs evaluations on a subject: what is there already is kept, and one that fails stops no other."""

import dataclasses
import gc
import hashlib
import json
import logging
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from hope_jax import __version__
from hope_jax.core.errors import OutputError, UserError
from hope_jax.core.files import to_json, write_atomic
from hope_jax.core.paths import files_in
from hope_jax.evals.reading.memorize import as_settings
from hope_jax.evals.suite import registry
from hope_jax.evals.suite.journal import path_of
from hope_jax.evals.suite.run import BASELINE, Run

logger = logging.getLogger("hope_jax.evals")

_MAPS = Path("/proc/self/maps")
_MOST_MAPS = 30_000
"""Memory maps of a process, of 65,530 that Linux allows: a compiled program takes tens of them, and XLA
crashes where it gets no more."""


class Result(NamedTuple):
    """What became of an evaluation. outcome: its JSON value, None if there is none. problem: why there is
    none. failed: it was tried."""

    name: str
    outcome: dict[str, Any] | None = None
    problem: str = ""
    failed: bool = False


class WatchedOptions(Mapping[str, Any]):
    """Options that remember which of them were asked for: a result depends on these alone."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options, self.asked = dict(options), dict[str, Any]()

    def __getitem__(self, key: str) -> Any:
        self.asked[key] = self._options.get(key)
        return self._options[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._options)

    def __len__(self) -> int:
        return len(self._options)


def run_all(run: Run, names: Sequence[str]) -> list[Result]:
    """Evaluates, one after another, and writes `out/<name>.json` of each.

    An evaluation whose JSON is there, of the same checkpoint, settings and options, is not run again; one
    that a kill stopped goes on where its own journal ends. Evaluations that are not asked for, but whose JSON
    is there from this checkpoint, come back too. Nothing is raised for an evaluation that fails.

    Raises:
      ConfigError: options that cannot be; nothing has run then.
      OutputError: a result cannot be written.
    """
    results = []
    for name in names:
        if not registry.unfit(name, run.subject):
            registry.check(name, run)
    for name in registry.EVALS:
        if name in names and (reason := registry.unfit(name, run.subject)):
            results.append(Result(name, problem=f"not run: {reason}"))
        elif name in names:
            results.append(_run_one(run, name))
            _drop_programs()
        elif (old := _read(run, name)) and _is_of(old, run):
            results.append(Result(name, old))
        elif missing := registry.lacking(name, run.options):
            results.append(Result(name, problem=f"not run: it needs {missing}"))
    return results


def _run_one(run: Run, name: str) -> Result:
    old = _read(run, name)
    if old is not None and _is_answer(old, run):
        logger.info("%s of %s: done already", name, run.subject.name)
        return Result(name, old)
    logger.info("%s of %s: begins", name, run.subject.name)
    started, options = time.monotonic(), WatchedOptions(run.options)
    try:
        found = registry.load(name).evaluate(dataclasses.replace(run, options=options))
    except Exception as error:
        problem = described(error)
        logger.error("error: %s of %s failed: %s", name, run.subject.name, problem)
        logger.debug("%s", "".join(traceback.format_exception(error)))
        return Result(name, problem=problem, failed=True)
    found = to_json({**found, "request": _request(run, options.asked)})
    try:
        write_atomic(_path(run, name), json.dumps(found, indent=1, allow_nan=False) + "\n")
        # Only now: a kill before the result is there must not take its records.
        path_of(run.out, name).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"--out: {_path(run, name)} cannot be written ({error.strerror}); make room"
        ) from None
    logger.info("%s of %s: %.0f s", name, run.subject.name, time.monotonic() - started)
    return Result(name, found)


def _path(run: Run, name: str) -> Path:
    return run.out / f"{name}.json"


def _read(run: Run, name: str) -> dict[str, Any] | None:
    """The result that is there, None if there is none that can be read."""
    try:
        found = json.loads(_path(run, name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and {"subject", "request", "metrics"} <= set(found) else None


def _request(run: Run, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What a result answers, a JSON value: an equal request needs no new one. asked: options it read."""
    return {
        "hope_jax": __version__,
        "checkpoint": run.subject.about["arrays_digest"],
        "config": run.subject.about["config_digest"],
        "tokenizer": run.subject.about["tokenizer_digest"],
        "limit": run.limit,
        "seed": run.seed,
        "memorize": None if run.arms == (BASELINE,) else as_settings(run.memorize),
        "arms": run.arms,
        "options": {key: _digest(value) for key, value in asked.items()},
    }


def _is_of(old: Mapping[str, Any], run: Run) -> bool:
    """Whether a result is of this very checkpoint."""
    about = run.subject.about
    return all(old["subject"].get(key) == about[key] for key in ("arrays_digest", "config_digest"))


def _is_answer(old: Mapping[str, Any], run: Run) -> bool:
    request = old["request"]
    asked = {key: run.options.get(key) for key in request.get("options", {})}
    same = to_json(_request(run, asked)) == request
    return same and ("items" in old or not run.records)


def _digest(value: Any) -> str:
    """Of an option's value (paths would tell whose machine it was), and of the files that it names: their
    number, bytes and latest change."""
    return hashlib.sha256(f"{json.dumps(value)}\n{_stamp(value)}".encode()).hexdigest()[:16]


def _stamp(value: Any) -> str:
    if not isinstance(value, str) or not value or not Path(value).exists():
        return ""
    root = Path(value)
    stats = [path.stat() for path in ([root] if root.is_file() else files_in(root, "**/*"))]
    latest = max((stat.st_mtime_ns for stat in stats), default=0)
    return f"{len(stats)} files, {sum(stat.st_size for stat in stats)} bytes, {latest}"


def described(error: Exception) -> str:
    """What went wrong, and where in the code, unless the user can mend it."""
    if isinstance(error, UserError):
        return str(error)
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}: {error}"


def _drop_programs() -> None:
    if _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > _MOST_MAPS:
        jax.clear_caches()
        gc.collect()
