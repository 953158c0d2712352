"""A whole suite: what is asked for and what is wrong with it, each checkpoint's evaluations, comparisons and
reports. What is there already is kept, and an evaluation that fails stops no other."""

import gc
import hashlib
import json
import logging
import os
import re
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import yaml

from hope_jax.config import assemble
from hope_jax.config.values import resolve
from hope_jax.core.errors import ConfigError, OutputError, UserError, lack_of_room
from hope_jax.core.files import to_json, write_atomic
from hope_jax.core.paths import files_in
from hope_jax.evals.reading.memorize import Rule, check_selection, fitting
from hope_jax.evals.reading.subject import checkpoint_paths, open_subject
from hope_jax.evals.suite import comparison, pages, registry
from hope_jax.evals.suite.pages import Reported
from hope_jax.evals.suite.registry import Result
from hope_jax.evals.suite.run import BASELINE, Asked, Run
from hope_jax.release import bundle
from hope_jax.storage import digests, stored

logger = logging.getLogger("hope_jax.evals")

COMPARISON_FILE = "comparison.json"
_MAPS = Path("/proc/self/maps")
_MOST_MAPS = 30_000
"""Memory maps of a process, of 65,530 that Linux allows: a compiled program takes tens of them, and XLA
crashes where it gets no more."""


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
    """A checkpoint to evaluate. path: of `checkpoints/<step>`. out: its folder."""

    path: Path
    out: Path

    @property
    def name(self) -> str:
        """Of its run and step."""
        return f"{self.path.parent.parent.name}/{self.path.name}"

    @property
    def step(self) -> int:
        """Of the checkpoint."""
        return int(self.path.name)


class Evaluated(NamedTuple):
    """A checkpoint's results. about: of its subject. uncompared: evaluations whose comparison failed."""

    target: Target
    about: dict[str, Any]
    results: list[Result]
    uncompared: tuple[str, ...] = ()

    @property
    def failed(self) -> list[str]:
        """Names of evaluations that were tried and failed, or whose comparison did."""
        return [r.name for r in self.results if r.failed] + [f"comparison of {n}" for n in self.uncompared]


def run(plan: Plan) -> list[Evaluated]:
    """Checks the plan, runs it, writes all JSONs and reports; the baseline, if there is one, stands last.
    Raises: as `resolved` and `check`, when nothing has been computed; OutputError."""
    targets, reference = resolved(plan)
    check(plan, targets, reference)
    baseline = None if reference is None else _evaluate(plan, reference, newest=True)
    last = {target.path.parent: target for target in sorted(targets, key=lambda target: target.step)}
    done = []
    for target in targets:
        found = _evaluate(plan, target, newest=target is last[target.path.parent])
        done.append(found._replace(uncompared=_report(found, baseline)))
    if len(done) > 1:
        _index(plan, done, baseline)
    if baseline is not None:
        _report(baseline, None)
        done.append(baseline)
    return done


def options_read(done: Sequence[Evaluated]) -> set[str]:
    """The options that any evaluation has asked for."""
    outcomes = [result.outcome for found in done for result in found.results if result.outcome]
    return {key for outcome in outcomes for key in outcome["request"]["options"]}


def resolved(plan: Plan) -> tuple[list[Target], Target | None]:
    """The checkpoints that a plan names, and its baseline; none verified yet. One checkpoint's results lie in
    `out` itself, those of several in a folder each, numbered where names are alike, the baseline's in
    `out/baseline`. Raises: CheckpointError where a path names none."""

    def one(path: Path) -> Path:
        folder, step = stored.resolve(path.absolute())
        return folder / str(step)

    given = plan.checkpoints
    paths = [p for path in given for p in (checkpoint_paths(path) if plan.all_checkpoints else [one(path)])]
    targets = [Target(path, plan.out) for path in dict.fromkeys(paths)]
    folders: list[str] = []
    for target in targets:
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", target.name).strip(".-") or "checkpoint"
        own, number = plain, 2
        while own in folders:
            own, number = f"{plain}-{number}", number + 1
        folders.append(own)
    if len(targets) > 1:
        targets = [t._replace(out=plan.out / folder) for t, folder in zip(targets, folders, strict=True)]
    baseline = None if plan.baseline is None else Target(one(plan.baseline), plan.out / "baseline")
    return targets, baseline


def check(plan: Plan, targets: Sequence[Target], baseline: Target | None) -> None:
    """Whether the results can be written, and the checkpoints are what their digests say and have what is to
    be written. Raises: ConfigError: a memory or a layer that a checkpoint does not have (the baseline's are
    those of them that it has), an `out` that cannot be written; BadFileError, CheckpointError: a checkpoint
    is damaged."""
    probe = plan.out / f".{os.getpid()}.tmp"
    try:
        plan.out.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"--out={plan.out}: cannot be written ({error.strerror}); want a folder, there or to be made"
        ) from None
    for target in (*targets, *([baseline] if baseline else [])):
        folder = target.path.parent
        if bundle.is_bundle(folder.parent):
            bundle.verify(folder.parent)
        else:
            stored.verify_checkpoint(folder, target.step)
    for target in targets:
        text = digests.read_text(target.path.parent / f"{target.step}.yaml")
        model = assemble.streamer(resolve(yaml.safe_load(text))).model
        try:
            check_selection(model, plan.memorize.paths, plan.memorize.layers)
        except ConfigError as error:
            raise ConfigError(f"{error} ({target.name})") from None


def _evaluate(plan: Plan, target: Target, *, newest: bool) -> Evaluated:
    """newest: of its run's checkpoints in this plan."""
    target.out.mkdir(parents=True, exist_ok=True)
    subject = open_subject(target.path)
    rule = fitting(subject.trained.streamer.model, plan.memorize)
    if rule is None:
        logger.warning("warning: %s has nothing of what is to be written: no memorization", target.name)
    before = [str(p) for p in checkpoint_paths(target.path.parent) if int(p.name) <= target.step]
    fitted = {
        # paired tests need what each item has come to
        "records": plan.records or plan.baseline is not None,
        "options": {"checkpoints": before, **plan.options},
        "memorize": rule or Rule(),
        "arms": plan.arms if rule else (BASELINE,),
    }
    one = Run(subject=subject, out=target.out, **plan.asked() | fitted)
    names = [name for name in plan.names if newest or not registry.EVALS[name].whole_run]
    return Evaluated(target, subject.about, run_all(one, names))


def run_all(run: Run, names: Sequence[str]) -> list[Result]:
    """Evaluates, one after another, and writes `out/<name>.json` of each. An evaluation whose JSON is there,
    of the same checkpoint, settings and options, is not run again; one that a kill stopped goes on where its
    own journal ends. Evaluations that are not asked for, but whose JSON is there from this checkpoint, come
    back too. Nothing is raised for an evaluation that fails. Raises: ConfigError for options that cannot be,
    when nothing has run; OutputError."""
    results, about = [], run.subject.about
    for name in names:
        if not registry.unfit(name, run.subject):
            registry.check(name, run)
    for name in registry.EVALS:
        old = _read(run.out / f"{name}.json")
        same = old and all(
            old["subject"].get(key) == about[key] for key in ("arrays_digest", "config_digest")
        )
        if name in names and (reason := registry.unfit(name, run.subject)):
            results.append(Result(name, problem=f"not run: {reason}"))
        elif name in names:
            results.append(_run_one(run, name, old))
            if _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > _MOST_MAPS:
                jax.clear_caches()
                gc.collect()
        elif same:
            results.append(Result(name, old))
        elif missing := registry.lacking(name, run.options):
            results.append(Result(name, problem=f"not run: it needs {missing}"))
    return results


class _Watched(Mapping[str, Any]):
    """Options that remember which of them were asked for: a result depends on these alone."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options, self.asked = options, dict[str, Any]()

    def __getitem__(self, key: str) -> Any:
        self.asked[key] = self._options.get(key)
        return self._options[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._options)

    def __len__(self) -> int:
        return len(self._options)


def _run_one(run: Run, name: str, old: dict[str, Any] | None) -> Result:
    """old: the result that is there."""
    who, path = run.subject.name, run.out / f"{name}.json"
    if old is not None and ("items" in old or not run.records):
        asked = {key: run.options.get(key) for key in old["request"].get("options", {})}
        if to_json(_request(run, asked)) == old["request"]:
            logger.info("%s of %s: done already", name, who)
            return Result(name, old)
    logger.info("%s of %s: begins", name, who)
    started, options = time.monotonic(), _Watched(run.options)
    try:
        found = registry.load(name).evaluate(replace(run, options=options))
    except Exception as error:
        return Result(name, problem=_told(error, f"{name} of {who} failed: "), failed=True)
    found = to_json({**found, "request": _request(run, options.asked)})
    try:
        write_atomic(path, json.dumps(found, indent=1, allow_nan=False) + "\n")
        # Only now: a kill before the result is there must not take its records.
        run.journal_path(name).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"--out: {path} cannot be written ({error.strerror}); make room") from None
    logger.info("%s of %s: %.0f s", name, who, time.monotonic() - started)
    return Result(name, found)


def _read(path: Path) -> dict[str, Any] | None:
    """The result that is there, None if there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and {"subject", "request", "metrics"} <= set(found) else None


def _request(run: Run, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What a result answers, a JSON value: an equal request needs no new one. asked: options it read."""
    options = {key: _digest(value) for key, value in asked.items()}
    return {**run.belongs(), **run.request(), "options": options}


def _digest(value: Any) -> str:
    """Of an option's value (paths would tell whose machine it was), and of the files that it names: their
    number, bytes and latest change."""
    stamp = ""
    if isinstance(value, str) and value and (root := Path(value)).exists():
        stats = [path.stat() for path in ([root] if root.is_file() else files_in(root, "**/*"))]
        latest = max((stat.st_mtime_ns for stat in stats), default=0)
        stamp = f"{len(stats)} files, {sum(stat.st_size for stat in stats)} bytes, {latest}"
    return hashlib.sha256(f"{json.dumps(value)}\n{stamp}".encode()).hexdigest()[:16]


def _told(error: Exception, before: str) -> str:
    """What went wrong, and where in the code, unless the user can mend it; logged too."""
    problem = str(error)
    if not isinstance(error, UserError):
        place = traceback.extract_tb(error.__traceback__)[-1]
        problem = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}: {error}"
    if lack := lack_of_room(error):
        problem = f"{lack}; lower --batch_size, or shorten the contexts (--lengths, --zeroshot_max_length)"
    logger.error("error: %s%s", before, problem)
    logger.debug("%s", "".join(traceback.format_exception(error)))
    return problem


def _report(found: Evaluated, baseline: Evaluated | None) -> tuple[str, ...]:
    """Writes the comparison and the report; returns the evaluations whose comparison failed."""
    compared, failed, out = None, list[str](), found.target.out
    if baseline is not None:
        compared, failed = _compared(found, baseline)
        write_atomic(out / COMPARISON_FILE, json.dumps(compared, indent=1, allow_nan=False) + "\n")
    folder = found.target.path.parent.parent
    pages.write_report(out, found.target.name, found.about, found.results, folder, compared)
    logger.info("%s: %s", found.target.name, out / "report.html")
    return tuple(failed)


def _index(plan: Plan, done: Sequence[Evaluated], baseline: Evaluated | None) -> None:
    folders = [e.target.out.relative_to(plan.out).as_posix() for e in done]
    names = [e.target.name for e in done]
    names = [n if names.count(n) == 1 else folder for n, folder in zip(names, folders, strict=True)]
    one_run = len({e.target.path.parent for e in done}) == 1
    pages.write_index(
        plan.out,
        {n: Reported(folder, e.results) for n, folder, e in zip(names, folders, done, strict=True)},
        baseline=baseline and (baseline.target.name, baseline.target.out.relative_to(plan.out).as_posix()),
        steps={n: e.target.step for n, e in zip(names, done, strict=True)} if one_run else None,
    )


def _compared(found: Evaluated, baseline: Evaluated) -> tuple[dict[str, Any], list[str]]:
    """The comparison, and the evaluations whose own has failed: that takes no report away."""
    others = {result.name: result.outcome for result in baseline.results}
    evals: dict[str, Any] = {}
    failed: list[str] = []
    for name, outcome, *_ in found.results:
        other = others.get(name)
        if outcome is None or other is None:
            continue
        try:
            evals[name] = to_json(comparison.compare(outcome, other))
        except Exception as error:
            problem = _told(error, f"{name} of {found.target.name}: the comparison failed: ")
            evals[name] = {"problem": f"the comparison failed: {problem}"}
            failed.append(name)
    keys = ("checkpoint", "arrays_digest", "config_digest", "tokenizer_digest")
    of = {"checkpoint": found.about, "baseline": baseline.about}
    return {**{who: {key: a[key] for key in keys} for who, a in of.items()}, "evals": evals}, failed
