"""What every evaluation is given, and the form of what it gives back."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from hope_jax import __version__
from hope_jax.evals.reading.memorize import Rule, as_settings
from hope_jax.evals.reading.subject import Subject
from hope_jax.evals.suite.journal import Journal, path_of, settings_digest

BASELINE, MEMORIZED, CONTROL = ARMS = ("baseline", "memorized", "control")
"""Without memorization; after the item's own text; after an unrelated text of the same length."""

FORMAT, VERSION = "hope_jax evaluation", 1


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked of every evaluation.

    limit: items a task at most; None: all. memorize, arms: what is compared. records: results hold a record
    for each item. options: an evaluation's own settings, JSON values.
    """

    limit: int | None = None
    seed: int = 0
    batch_size: int = 16
    memorize: Rule = Rule()
    arms: tuple[str, ...] = (BASELINE,)
    records: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def asked(self) -> dict[str, Any]:
        """These fields by name."""
        return {each.name: getattr(self, each.name) for each in fields(Asked)}


@dataclass(frozen=True)
class Run(Asked):
    """One evaluation of one subject. out: folder of its results."""

    subject: Subject
    out: Path

    def settings(self, name: str, own: Mapping[str, Any]) -> dict[str, Any]:
        """All that the evaluation's figures depend on, a JSON value; `own`: its settings as resolved."""
        return {
            "eval": name,
            "checkpoint": self.subject.about["arrays_digest"],
            "tokenizer": self.subject.about["tokenizer_digest"],
            "limit": self.limit,
            "seed": self.seed,
            "memorize": as_settings(self.memorize) if self.arms != (BASELINE,) else None,
            "arms": list(self.arms),
            **own,
        }

    def journal(self, name: str, own: Mapping[str, Any], began: float | None = None) -> Journal:
        """What has been found already under these very settings. began: see `Journal`."""
        belongs = {"config": self.subject.about["config_digest"], "hope_jax": __version__}
        return Journal(path_of(self.out, name), {**self.settings(name, own), **belongs}, began)


def outcome(
    run: Run,
    name: str,
    *,
    settings: Mapping[str, Any],
    metrics: Mapping[str, Mapping[str, Any]],
    seconds: float,
    paired: Mapping[str, Mapping[str, Any]] | None = None,
    items: Sequence[Mapping[str, Any]] = (),
    **more: Any,
) -> dict[str, Any]:
    """A result: what was evaluated, how, and what came out; a JSON value.

    metrics: "task/metric/arm" -> `statistics.as_json`. seconds: of all starts (`Journal.seconds`).
    paired: "task/metric/memorized-baseline" -> `statistics.paired_as_json`. Where `use_correct_answer` was
    asked for, the arm `memorized` and its differences carry `"leak": true`. more: further fields; to its
    `notes` comes what `updates` show of arms that did not write alike.
    """
    own = run.settings(name, settings)
    asked = run.memorize.use_correct_answer
    marked = {key: _marked(key, value, asked) for key, value in metrics.items()}
    tests = {key: _marked(key, value, asked) for key, value in (paired or {}).items()}
    leak = any(value.get("leak") for value in (*marked.values(), *tests.values()))
    found = {
        "format": FORMAT,
        "version": VERSION,
        "eval": name,
        "subject": run.subject.about,
        "settings": own,
        "settings_digest": settings_digest(own),
        "batch_size": run.batch_size,
        "metrics": marked,
        "paired": tests,
        "leak": leak,
        "seconds": seconds,
        **more,
    }
    notes = [*more.get("notes", ()), *_unlike(more.get("updates", {}))]
    found |= {"notes": notes} if notes else {}
    return {**found, "items": list(items)} if run.records else found


def _unlike(updates: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    """A note where the control arm has not written as often as the memorized one.

    Both read as many tokens; but a gate opens by surprise, and their texts need not surprise alike.
    """
    if not {MEMORIZED, CONTROL} <= set(updates):
        return []
    levels = updates[MEMORIZED]
    apart = {}
    for level, of in levels.items():
        one, other = of["updates_applied"], updates[CONTROL][level]["updates_applied"]
        if abs(one - other) > _ALIKE * max(one, other):
            apart[level] = (one, other)
    if not apart:
        return []
    level = max(apart, key=lambda name: abs(apart[name][0] - apart[name][1]))
    one, other = apart[level]
    return [
        f"The control arm wrote {other:.3g} times an item in {level} where the memorized arm wrote {one:.3g} "
        "times, as their texts do not surprise this model alike: what parts the two arms is not the text "
        "alone. --memorize_surprise_threshold=0 lets both write alike."
    ]


_ALIKE = 0.1
"""Share by which two arms' writes may differ without a note."""


def _marked(key: str, value: Mapping[str, Any], leak: bool) -> dict[str, Any]:
    touched = leak and MEMORIZED in key.rsplit("/", 1)[-1]
    return {**value, "leak": True} if touched else dict(value)


def item_key(place: str, content: bytes) -> str:
    """The key of an item at a place: other content there, of other settings or data, is another item, which
    comparisons must not pair."""
    return f"{place}-{hashlib.sha256(content).hexdigest()[:8]}"


def progress(what: str) -> logging.Logger:
    """The logger of evaluations' progress."""
    return logging.getLogger(f"hope_jax.evals.{what}")
