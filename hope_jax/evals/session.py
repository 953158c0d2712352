"""A whole suite: every checkpoint of a plan, its baseline, comparisons and reports."""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hope_jax.evals import comparison, plan, registry, report, runner
from hope_jax.evals.memorize import Rule, fitting
from hope_jax.evals.plan import Plan, Target
from hope_jax.evals.report import Reported
from hope_jax.evals.run import BASELINE, Run
from hope_jax.evals.runner import Result
from hope_jax.evals.subject import Subject, checkpoint_paths, open_subject
from hope_jax.training.files import write_atomic

logger = logging.getLogger("hope_jax.evals")

COMPARISON_FILE = "comparison.json"


class Evaluated(NamedTuple):
    """A checkpoint's results. about: of its subject."""

    target: Target
    about: dict[str, Any]
    results: list[Result]

    @property
    def failed(self) -> list[str]:
        """Names of evaluations that were tried and failed."""
        return [result.name for result in self.results if result.failed]


def run(wanted: Plan) -> list[Evaluated]:
    """Checks the plan, runs it, writes all JSONs and reports; the baseline, if there is one, stands last.

    Raises:
      ConfigError, CheckpointError: see `plan.check`; nothing has been computed then.
      OutputError: a result cannot be written.
    """
    targets = plan.resolved(wanted)
    plan.check(wanted, targets)
    baseline = None if targets.baseline is None else _evaluate(wanted, targets.baseline, newest=True)
    done = []
    last = {target.path.parent: target for target in sorted(targets.checkpoints, key=_step)}
    for target in targets.checkpoints:
        found = _evaluate(wanted, target, newest=target is last[target.path.parent])
        _report(found, baseline)
        done.append(found)
    if len(done) > 1:
        _index(wanted, done, baseline)
    if baseline is not None:
        _report(baseline, None)
        done.append(baseline)
    return done


def options_read(done: Sequence[Evaluated]) -> set[str]:
    """The options that any evaluation has asked for."""
    outcomes = [result.outcome for found in done for result in found.results if result.outcome]
    return {key for outcome in outcomes for key in outcome["request"]["options"]}


def _step(target: Target) -> int:
    return int(target.path.name)


def _evaluate(wanted: Plan, target: Target, *, newest: bool) -> Evaluated:
    """newest: of its run's checkpoints in this plan."""
    target.out.mkdir(parents=True, exist_ok=True)
    subject = open_subject(target.path)
    one = Run(
        subject=subject,
        out=target.out,
        **wanted.asked() | _fitted(wanted, target, subject),
    )
    names = [name for name in wanted.names if newest or not registry.EVALS[name].whole_run]
    return Evaluated(target, subject.about, runner.run_all(one, names))


def _fitted(wanted: Plan, target: Target, subject: Subject) -> dict[str, Any]:
    """What is asked of one checkpoint where it differs from the plan."""
    rule = fitting(subject.trained.streamer.model, wanted.memorize)
    if rule is None:
        logger.warning("warning: %s has nothing of what is to be written: no memorization", target.name)
    return {
        # paired tests need what each item has come to
        "records": wanted.records or wanted.baseline is not None,
        "options": {"checkpoints": _up_to(target), **wanted.options},
        "memorize": rule or Rule(),
        "arms": wanted.arms if rule else (BASELINE,),
    }


def _up_to(target: Target) -> list[str]:
    """Paths of the run's checkpoints, oldest first, to the target."""
    paths = checkpoint_paths(target.path.parent)
    return [str(path) for path in paths if int(path.name) <= _step(target)]


def _report(found: Evaluated, baseline: Evaluated | None) -> None:
    compared = None if baseline is None else _compared(found, baseline)
    out = found.target.out
    if compared is not None:
        write_atomic(out / COMPARISON_FILE, json.dumps(compared, indent=1, allow_nan=False) + "\n")
    folder = found.target.path.parent.parent
    report.write_report(out, found.target.name, found.about, found.results, folder, compared)
    logger.info("%s: %s", found.target.name, out / "report.html")


def _index(wanted: Plan, done: Sequence[Evaluated], baseline: Evaluated | None) -> None:
    folders = [e.target.out.relative_to(wanted.out).as_posix() for e in done]
    names = [e.target.name for e in done]
    names = [n if names.count(n) == 1 else folder for n, folder in zip(names, folders, strict=True)]
    one_run = len({e.target.path.parent for e in done}) == 1
    report.write_index(
        wanted.out,
        {n: Reported(folder, e.results) for n, folder, e in zip(names, folders, done, strict=True)},
        baseline=baseline and (baseline.target.name, baseline.target.out.relative_to(wanted.out).as_posix()),
        steps={n: _step(e.target) for n, e in zip(names, done, strict=True)} if one_run else None,
    )


def _compared(found: Evaluated, baseline: Evaluated) -> dict[str, Any]:
    others = {result.name: result.outcome for result in baseline.results}
    evals: dict[str, Any] = {}
    for result in found.results:
        other = others.get(result.name)
        if result.outcome is None or other is None:
            continue
        if "items" not in result.outcome or "items" not in other:
            evals[result.name] = {"problem": "no records of items, so no paired test; run it with --baseline"}
            continue
        found_of = comparison.compare(result.outcome, other)
        if not found_of["paired"]:
            found_of = {"problem": "its records hold no score of single items that both have"}
        evals[result.name] = found_of
    return {"checkpoint": _identity(found.about), "baseline": _identity(baseline.about), "evals": evals}


def _identity(about: Mapping[str, Any]) -> dict[str, Any]:
    return {key: about[key] for key in ("checkpoint", "arrays_digest", "config_digest", "tokenizer_digest")}
