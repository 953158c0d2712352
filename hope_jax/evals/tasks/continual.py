"""Segments by checkpoints: held-out loss of each kind of text at each checkpoint, forgetting and transfer.

Every block of a segment is a context of its own, whose memories are written as it is read. Arms: `baseline`
starts from the trained memories; `memorized` first memorizes the block before it in the segment (with
`use_correct_answer` the block itself, a leak by design); `control` an unrelated text of the same length.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hope_jax.core.errors import ConfigError, DataError
from hope_jax.core.paths import as_path
from hope_jax.core.types import PyTree
from hope_jax.evals import statistics, transfer
from hope_jax.evals.arms.memorized import Records, compare, run_arms, update_statistics
from hope_jax.evals.reading.memorize import excerpt, unrelated
from hope_jax.evals.reading.scoring import token_log_probs
from hope_jax.evals.reading.subject import Subject, checkpoint_paths, open_subject
from hope_jax.evals.suite.journal import Journal
from hope_jax.evals.suite.options import whole_number
from hope_jax.evals.suite.run import BASELINE, CONTROL, MEMORIZED, Run, outcome, progress
from hope_jax.evals.tasks.segments import blocks, load_segments
from hope_jax.evals.tasks.transfer_figures import continual_figures

NAME = "continual"
_ALL = "all"


class Block(NamedTuple):
    """tokens: scored, int32 [n]. before: the block before it in the segment, int32 [n]."""

    key: str
    segment: str
    tokens: np.ndarray
    before: np.ndarray


def evaluate(run: Run) -> dict[str, Any]:
    """The outcome. Options: those of `segments.load_segments`; `checkpoints`: paths, oldest first, or one
    path (of a workdir all its checkpoints; default: the subject and those before it in its run);
    `block_tokens` (default: those of a training row); `learned_at`: for each segment the index of the
    checkpoint after it was trained on (default 0: transfer and forgetting since the first).
    `run.limit`: blocks of a segment. Figures of losses are of the last checkpoint.

    Raises:
      ConfigError: an option that is no such thing, or checkpoints with different tokenizers.
      CheckpointError, DataError: what cannot be read.
    """
    started, asked = time.monotonic(), _asked(run)
    own = {**asked.settings, "checkpoints": [_digest(run, path) for path in asked.paths]}
    journal = run.journal(NAME, own, started)
    found: list[Records] = []
    names: list[str] = []
    for i, path in enumerate(asked.paths):
        # One at a time: a run's checkpoints need not fit into memory together.
        subject = _open(run, path)
        names.append(subject.name)
        progress(NAME).info("checkpoint %d of %d: %s", i + 1, len(asked.paths), subject.name)
        prefixed = _Prefixed(journal, subject.about["arrays_digest"])
        found.append(_measure(run, subject, prefixed, asked.items, asked.tokens))
    metrics, tests = _summary(run, asked, found)
    segments, since = list(asked.tokens), asked.settings["learned_at"]
    result = outcome(
        run,
        NAME,
        settings=own,
        metrics=metrics,
        paired=tests,
        seconds=journal.seconds(),
        checkpoints=names,
        updates=update_statistics(found[-1]),
        table={arm: _table(arm, segments, found) for arm in run.arms},
        forgetting={arm: _forgetting(arm, segments, since, found) for arm in run.arms},
        notes=_notes(names),
        items=[
            {"checkpoint": name, "arm": arm, "tasks": [_ALL, record["segment"]], **record}
            for name, records in zip(names, found, strict=True)
            for arm, rows in records.items()
            for record in rows
        ],
    )
    journal.close()
    return result


def _notes(checkpoints: Sequence[str]) -> list[str]:
    if len(checkpoints) > 1:
        return []
    return [
        f"Of one checkpoint ({checkpoints[0]}) there is neither forgetting nor transfer; give a run "
        "with more of them, or --option=checkpoints=PATH,PATH."
    ]


def check(run: Run) -> None:
    """Raises: ConfigError for options that cannot be, DataError for texts."""
    _asked(run)


class Asked(NamedTuple):
    """What the options ask for. paths: of the checkpoints. tokens: of each segment, int32 [n].
    per_byte: tokens a byte of each."""

    settings: dict[str, Any]
    paths: list[Path]
    tokens: dict[str, np.ndarray]
    per_byte: dict[str, float]
    items: list[Block]


def _asked(run: Run) -> Asked:
    length = whole_number(run.options, "block_tokens", run.subject.config.data.seq_len - 1, least=8)
    paths = _checkpoints(run)
    segments = load_segments(run.options, run.subject.config, run.seed)
    tokens = {s.name: run.subject.trained.tokenizer.encode(s.text) for s in segments}
    settings = {
        "segments": list(tokens),
        "segment_bytes": [len(segment.text.encode()) for segment in segments],
        "unseen_in_training": all(segment.checked for segment in segments),
        "block_tokens": length,
        "learned_at": _learned_at(run.options, len(segments), len(paths)),
    }
    items = [item for name in tokens for item in _blocks(name, tokens[name], length, run.limit)]
    per_byte = {s.name: len(tokens[s.name]) / len(s.text.encode()) for s in segments}
    return Asked(settings, paths, tokens, per_byte, items)


figures = continual_figures


class _Prefixed:
    """A journal of one checkpoint in that of all."""

    def __init__(self, journal: Journal, prefix: str) -> None:
        self.journal, self.prefix = journal, prefix

    def get(self, key: str) -> dict[str, Any] | None:
        return self.journal.get(f"{self.prefix}/{key}")

    def put(self, key: str, record: dict[str, Any]) -> None:
        self.journal.put(f"{self.prefix}/{key}", record)


def _checkpoints(run: Run) -> list[Path]:
    given = run.options.get("checkpoints")
    if given is None:
        beside = checkpoint_paths(run.subject.trained.path.parent.parent)
        return [path for path in beside if int(path.name) <= run.subject.about["step"]]
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


def _digest(run: Run, path: Path) -> str:
    return str(_open(run, path).about["arrays_digest"])


def _blocks(name: str, tokens: np.ndarray, length: int, limit: int | None) -> list[Block]:
    cut = blocks(tokens, length)
    if len(cut) < 2:
        raise DataError(
            f"segments: {name} has {len(tokens)} tokens, fewer than 2 blocks of {length}; give longer texts "
            "or fewer block_tokens"
        )
    pairs = list(zip(cut, cut[1:], strict=False))[:limit]
    return [Block(f"{name}/{i}", name, own, before) for i, (before, own) in enumerate(pairs)]


def _measure(
    run: Run, subject: Subject, journal: Any, items: Sequence[Block], tokens: Mapping[str, np.ndarray]
) -> Records:
    """Records of each arm at one checkpoint. tokens: of each segment; the control's text is of another."""

    def score(batch: Sequence[Block], fast: PyTree | None) -> list[dict[str, Any]]:
        found = token_log_probs(subject, [b.tokens for b in batch], fast, batch_size=run.batch_size)
        return [
            {"segment": b.segment, "nats_per_token": -float(row.mean())}
            for b, row in zip(batch, found, strict=True)
        ]

    def text(item: Block) -> np.ndarray:
        return item.tokens if run.memorize.use_correct_answer else item.before

    def control(item: Block, length: int, seed: int) -> np.ndarray:
        others = [own for name, own in tokens.items() if name != item.segment]
        if not others:
            return unrelated(subject, length, seed)
        return excerpt(np.concatenate(others), length, seed)

    return run_arms(replace(run, subject=subject), journal, items, text, score, control)


def _rows(arm: str, name: str, found: Sequence[Records]) -> np.ndarray:
    """Losses [K, n] of a segment's blocks at each checkpoint."""
    return np.array(
        [[r["nats_per_token"] for r in records[arm] if r["segment"] == name] for records in found]
    )


def _table(arm: str, names: Sequence[str], found: Sequence[Records]) -> dict[str, list[dict[str, Any]]]:
    return {
        name: [statistics.as_json(statistics.mean(row)) for row in _rows(arm, name, found)] for name in names
    }


def _forgetting(
    arm: str, names: Sequence[str], since: Sequence[int], found: Sequence[Records]
) -> dict[str, list[dict[str, Any] | None]]:
    """Of each segment and of all, forgetting as it stands at each checkpoint; None: nothing came before."""
    table = [_rows(arm, name, found) for name in names]
    curves: dict[str, list[dict[str, Any] | None]] = {name: [] for name in (*names, _ALL)}
    for last in range(1, len(found) + 1):
        estimates = transfer.forgetting([rows[:last] for rows in table], since)
        for name, estimate in zip(curves, [*estimates, transfer.average(estimates)], strict=True):
            curves[name].append(None if estimate is None else statistics.as_json(estimate))
    return curves


def _summary(
    run: Run, asked: Asked, found: Sequence[Records]
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Metrics and paired tests."""
    metrics: dict[str, Any] = {}
    tests: dict[str, Any] = {}
    for name, rate in asked.per_byte.items():
        last = {arm: [r for r in rows if r["segment"] == name] for arm, rows in found[-1].items()}
        of_last, paired = compare(last, "nats_per_token", f"{name}/nats_per_token")
        metrics |= of_last | _per_byte(of_last, rate)
        tests |= paired
    tests |= _over_all(list(asked.tokens), found[-1])
    for arm in run.arms:
        metrics |= _transfer(arm, list(asked.tokens), asked.settings["learned_at"], found)
    return metrics, tests


def _over_all(names: Sequence[str], last: Records) -> dict[str, dict[str, Any]]:
    """Tests of the memorized arm over all segments, which weigh the same, as in the mean over them."""
    losses = {arm: [_rows(arm, name, [last])[0] for name in names] for arm in last}
    return {
        f"{_ALL}/nats_per_token/{MEMORIZED}-{other}": statistics.paired_as_json(
            statistics.paired_over(list(zip(losses[MEMORIZED], losses[other], strict=True)))
        )
        for other in (BASELINE, CONTROL)
        if MEMORIZED in losses and other in losses
    }


def _transfer(
    arm: str, names: Sequence[str], since: Sequence[int], found: Sequence[Records]
) -> dict[str, dict[str, Any]]:
    """Metrics of one arm: of each segment and of all."""
    table = [_rows(arm, name, found) for name in names]
    metrics = {}
    for what, estimates in (
        ("forgetting", transfer.forgetting(table, since)),
        ("backward_transfer", transfer.backward_transfer(table, since)),
    ):
        for name, estimate in [*zip(names, estimates, strict=True), (_ALL, transfer.average(estimates))]:
            if estimate is not None:
                metrics[f"{name}/{what}/{arm}"] = statistics.as_json(estimate)
    average = transfer.average([statistics.mean(rows[-1]) for rows in table])
    assert average is not None
    return {**metrics, f"{_ALL}/nats_per_token/{arm}": statistics.as_json(average)}


def _per_byte(metrics: Mapping[str, Mapping[str, Any]], rate: float) -> dict[str, dict[str, Any]]:
    """Nats a byte: nats a token times the tokens of a byte of the segment."""
    return {
        key.replace("nats_per_token", "nats_per_byte"): {
            **metric,
            "value": metric["value"] * rate,
            "ci95": None if metric["ci95"] is None else [bound * rate for bound in metric["ci95"]],
        }
        for key, metric in metrics.items()
    }
