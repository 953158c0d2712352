"""Segments by checkpoints: held-out loss of each kind of text at each checkpoint, forgetting and transfer
(docs/evals/continual.md)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hope_jax.core.errors import ConfigError
from hope_jax.core.paths import as_path
from hope_jax.core.types import PyTree
from hope_jax.evals import statistics, transfer
from hope_jax.evals.reading.memorize import excerpt, unrelated
from hope_jax.evals.reading.scoring import token_log_probs
from hope_jax.evals.reading.subject import Subject, checkpoint_paths, open_subject
from hope_jax.evals.suite.run import BASELINE, CONTROL, MEMORIZED, Journal, Run, evaluation, progress
from hope_jax.evals.tasks.arms import Records, Tables, compare, run_arms, update_statistics
from hope_jax.evals.tasks.curves import continual_figures
from hope_jax.evals.tasks.segments import Cut, cut_segments

NAME = "continual"
_ALL = "all"
Losses = Mapping[str, Mapping[str, np.ndarray]]
"""Arm -> segment -> of its blocks at each checkpoint, [K, n]."""
_NOTHING_TO_FORGET = (
    "Of one checkpoint ({}) there is neither forgetting nor transfer; give a run with more of them, or "
    "--option=checkpoints=PATH,PATH."
)


class Block(NamedTuple):
    """tokens: scored, int32 [n]. before: the block before it in the segment, int32 [n]."""

    key: str
    segment: str
    tokens: np.ndarray
    before: np.ndarray


def _asked(run: Run) -> tuple[dict[str, Any], list[Path], list[Cut]]:
    """The settings, the checkpoints, and the segments."""
    paths = _checkpoints(run)
    cuts, settings = cut_segments(run, 2)
    return settings | {"learned_at": _learned_at(run.options, len(cuts), len(paths))}, paths, cuts


def _opened(run: Run) -> tuple[dict[str, Any], list[Path], list[Cut]]:
    """What `_asked` returns, and the checkpoints' digests, which must be opened for them."""
    settings, paths, cuts = _asked(run)
    own = [str(_open(run, path).about["arrays_digest"]) for path in paths]
    return settings | {"checkpoints": own}, paths, cuts


@evaluation(NAME, _opened, continual_figures, check=_asked)
def evaluate(
    run: Run, journal: Journal, settings: dict[str, Any], paths: Sequence[Path], cuts: Sequence[Cut]
) -> dict[str, Any]:
    """What is measured. `run.limit`: blocks of a segment. Figures of losses are of the last checkpoint.
    Raises: ConfigError also for checkpoints with different tokenizers; CheckpointError."""
    found: list[Records] = []
    names: list[str] = []
    for i, path in enumerate(paths):
        # One at a time: a run's checkpoints need not fit into memory together.
        subject = _open(run, path)
        names.append(subject.name)
        progress(NAME).info("checkpoint %d of %d: %s", i + 1, len(paths), subject.name)
        found.append(_measure(run, subject, journal, cuts))
    since, losses = settings["learned_at"], _losses(cuts, found)
    forgetting = {arm: _forgetting(table, since) for arm, table in losses.items()}
    metrics, tests = _summary(cuts, since, found[-1], losses)
    for arm, curves in forgetting.items():
        metrics |= {f"{name}/forgetting/{arm}": curve[-1] for name, curve in curves.items() if curve[-1]}
    return {
        "metrics": metrics,
        "paired": tests,
        "checkpoints": names,
        "updates": update_statistics(found[-1]),
        "table": {
            arm: {name: [statistics.mean(row).as_json() for row in rows] for name, rows in table.items()}
            for arm, table in losses.items()
        },
        "forgetting": forgetting,
        "notes": [_NOTHING_TO_FORGET.format(name) for name in names] if len(names) == 1 else [],
        "items": [
            {"checkpoint": name, "arm": arm, "tasks": [_ALL, record["segment"]], **record}
            for name, records in zip(names, found, strict=True)
            for arm, rows in records.items()
            for record in rows
        ],
    }


def _checkpoints(run: Run) -> list[Path]:
    given = run.options.get("checkpoints", run.subject.trained.path)
    if isinstance(given, str | Path):
        given = [given]
    if not isinstance(given, list | tuple) or not all(isinstance(path, str | Path) for path in given):
        raise ConfigError(f"checkpoints={given!r}: want a workdir, or a list of paths, oldest first")
    return [path for one in given for path in checkpoint_paths(as_path("checkpoints", str(one)))]


def _learned_at(options: Mapping[str, Any], segments: int, checkpoints: int) -> list[int]:
    given = options.get("learned_at")
    if given is None:
        return [0] * segments
    good = isinstance(given, list | tuple) and len(given) == segments
    if not good or any(type(i) is not int or not 0 <= i < checkpoints for i in given):
        raise ConfigError(
            f"learned_at={given!r}: want for each of {segments} segments the index of a checkpoint, from 0 "
            f"to {checkpoints - 1}"
        )
    return list(given)


def _open(run: Run, path: Path) -> Subject:
    subject = run.subject if path == run.subject.trained.path else open_subject(path)
    if subject.about["tokenizer_digest"] != run.subject.about["tokenizer_digest"]:
        raise ConfigError(
            f"checkpoints: {subject.name} has another tokenizer than {run.subject.name}, so their losses a "
            "token cannot be compared; give checkpoints of one tokenizer"
        )
    return subject


def _measure(run: Run, subject: Subject, journal: Journal, cuts: Sequence[Cut]) -> Records:
    """Records of each arm at one checkpoint; the control's text is of another segment."""

    def score(batch: Sequence[Block], fast: PyTree | None) -> list[dict[str, Any]]:
        found = token_log_probs(subject, [b.tokens for b in batch], fast, batch_size=run.batch_size)
        return [
            {"segment": b.segment, "nats_per_token": -float(row.mean())}
            for b, row in zip(batch, found, strict=True)
        ]

    def text(item: Block) -> np.ndarray:
        return item.tokens if run.memorize.use_correct_answer else item.before

    def control(item: Block, length: int, seed: int) -> np.ndarray:
        others = [cut.tokens for cut in cuts if cut.name != item.segment]
        if not others:
            return unrelated(subject, length, seed)
        return excerpt(np.concatenate(others), length, seed)

    items = [
        Block(f"{cut.name}/{i}", cut.name, cut.blocks[i + 1], cut.blocks[i])
        for cut in cuts
        for i in range(len(cut.blocks) - 1)[: run.limit]
    ]
    prefix = f"{subject.about['arrays_digest']}/"
    return run_arms(replace(run, subject=subject), journal, items, text, score, control, prefix=prefix)


def _losses(cuts: Sequence[Cut], found: Sequence[Records]) -> Losses:
    def of(records: list[dict[str, Any]], name: str) -> list[float]:
        return [record["nats_per_token"] for record in records if record["segment"] == name]

    return {
        arm: {cut.name: np.array([of(records[arm], cut.name) for records in found]) for cut in cuts}
        for arm in found[0]
    }


def _forgetting(
    table: Mapping[str, np.ndarray], since: Sequence[int]
) -> dict[str, list[dict[str, Any] | None]]:
    """Of each segment and of all, forgetting as it stands at each checkpoint; None: nothing came before."""
    curves: dict[str, list[dict[str, Any] | None]] = {name: [] for name in (*table, _ALL)}
    for last in range(1, 1 + max(map(len, table.values()))):
        estimates = transfer.forgetting([rows[:last] for rows in table.values()], since)
        for name, estimate in zip(curves, [*estimates, transfer.average(estimates)], strict=True):
            curves[name].append(None if estimate is None else estimate.as_json())
    return curves


def _summary(cuts: Sequence[Cut], since: Sequence[int], last: Records, losses: Losses) -> Tables:
    metrics: dict[str, Any] = {}
    tests: dict[str, Any] = {}
    for cut in cuts:
        own = {arm: [r for r in rows if r["segment"] == cut.name] for arm, rows in last.items()}
        of_segment, paired = compare(own, cut.name, {"nats_per_token": None})
        metrics |= of_segment
        tests |= paired
        for arm, table in losses.items():
            nats = statistics.mean(table[cut.name][-1])
            metrics[f"{cut.name}/nats_per_byte/{arm}"] = nats.mapped(cut.per_byte.__mul__)
    tests |= _over_all(losses)
    for arm, table in losses.items():
        estimates = transfer.backward_transfer([*table.values()], since)
        for name, estimate in zip((*table, _ALL), (*estimates, transfer.average(estimates)), strict=True):
            if estimate is not None:
                metrics[f"{name}/backward_transfer/{arm}"] = estimate
        average = transfer.average([statistics.mean(rows[-1]) for rows in table.values()])
        metrics[f"{_ALL}/nats_per_token/{arm}"] = average
    return metrics, tests


def _over_all(losses: Losses) -> dict[str, Any]:
    """Tests of the memorized arm over all segments, which weigh the same, as in the mean over them."""
    last = {arm: [rows[-1] for rows in table.values()] for arm, table in losses.items()}
    return {
        f"{_ALL}/nats_per_token/{MEMORIZED}-{o}": statistics.paired_over(
            list(zip(last[MEMORIZED], last[o], strict=True))
        ).as_json()
        for o in (BASELINE, CONTROL)
        if {MEMORIZED, o} <= set(last)
    }
