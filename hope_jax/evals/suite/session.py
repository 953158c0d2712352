"""A whole suite: every checkpoint of a plan, its baseline, comparisons and reports."""

import json
import logging
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hope_jax.core.files import to_json, write_atomic
from hope_jax.evals.reading.memorize import Rule, fitting
from hope_jax.evals.reading.subject import Subject, checkpoint_paths, open_subject
from hope_jax.evals.suite import comparison, registry, runner
from hope_jax.evals.suite import pages as report
from hope_jax.evals.suite import request as plan
from hope_jax.evals.suite.pages import Reported
from hope_jax.evals.suite.request import Plan, Target
from hope_jax.evals.suite.run import BASELINE, Run
from hope_jax.evals.suite.runner import Result

logger = logging.getLogger("hope_jax.evals")

COMPARISON_FILE = "comparison.json"


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
        done.append(found._replace(uncompared=_report(found, baseline)))
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


def _report(found: Evaluated, baseline: Evaluated | None) -> tuple[str, ...]:
    """Writes the comparison and the report; returns the evaluations whose comparison failed."""
    compared, failed, out = None, list[str](), found.target.out
    if baseline is not None:
        compared, failed = _compared(found, baseline)
        write_atomic(out / COMPARISON_FILE, json.dumps(compared, indent=1, allow_nan=False) + "\n")
    folder = found.target.path.parent.parent
    report.write_report(out, found.target.name, found.about, found.results, folder, compared)
    logger.info("%s: %s", found.target.name, out / "report.html")
    return tuple(failed)


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


def _compared(found: Evaluated, baseline: Evaluated) -> tuple[dict[str, Any], list[str]]:
    """The comparison, and the evaluations whose own has failed: that takes no report away."""
    others = {result.name: result.outcome for result in baseline.results}
    evals: dict[str, Any] = {}
    failed: list[str] = []
    for result in found.results:
        other = others.get(result.name)
        if result.outcome is None or other is None:
            continue
        try:
            evals[result.name] = to_json(_compared_of(result.outcome, other))
        except Exception as error:
            problem = f"the comparison failed: {runner.described(error)}"
            logger.error("error: %s of %s: %s", result.name, found.target.name, problem)
            logger.debug("%s", "".join(traceback.format_exception(error)))
            evals[result.name] = {"problem": problem}
            failed.append(result.name)
    of = {"checkpoint": _identity(found.about), "baseline": _identity(baseline.about)}
    return {**of, "evals": evals}, failed


def _compared_of(outcome: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The comparison of one evaluation, or why there is none."""
    if "items" not in outcome or "items" not in other:
        return {"problem": "no records of items, so no paired test; run it with --baseline"}
    compared = comparison.compare(outcome, other)
    if not compared["paired"]:
        return {"problem": "its records hold no score of single items that both have"}
    return compared


def _identity(about: Mapping[str, Any]) -> dict[str, Any]:
    return {key: about[key] for key in ("checkpoint", "arrays_digest", "config_digest", "tokenizer_digest")}
