"""What every evaluation is given, what it keeps on the way, and the form of what it gives back."""

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from hope_jax import __version__
from hope_jax.core.errors import ConfigError, OutputError, instead
from hope_jax.evals.reading.memorize import Rule, as_settings
from hope_jax.evals.reading.subject import Subject
from hope_jax.release.model_card import RESULT

BASELINE, MEMORIZED, CONTROL = ARMS = ("baseline", "memorized", "control")
"""Without memorization; after the item's own text; after an unrelated text of the same length."""

VERSION = 1
_ALIKE = 0.1
"""Share by which two arms' writes may differ without a note."""

logger = logging.getLogger("hope_jax.evals")


def progress(what: str) -> logging.Logger:
    """The logger of evaluations' progress."""
    return logging.getLogger(f"hope_jax.evals.{what}")


def digest_of(value: Any) -> str:
    """Hex SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class Journal:
    """What an evaluation has found so far, so that a killed one goes on where it stopped: records by key in a
    file, a line each; the first line tells what they belong to. A file of other settings, or one that cannot
    be read, is begun anew; a last line that a kill cut short is dropped. Each line also tells the seconds
    that all starts have taken up to it. began: of this start, by `time.monotonic`; None: now. Raises:
    OutputError where the file cannot be written."""

    def __init__(self, path: Path, settings: Mapping[str, Any], began: float | None = None) -> None:
        self.path, self._began = path, time.monotonic() if began is None else began
        head, lines = {"settings": digest_of(settings)}, list[Any]()
        with contextlib.suppress(OSError, ValueError):
            lines.extend(json.loads(line) for line in path.read_text().splitlines())
        kept = lines[1:] if lines and lines[0] == head else []
        if not all(isinstance(line, dict) and {"key", "record"} <= set(line) for line in kept):
            kept = []
        self._records: dict[str, dict[str, Any]] = {line["key"]: line["record"] for line in kept}
        self._before = max((float(line.get("seconds", 0.0)) for line in kept), default=0.0)
        if kept:
            logger.info("%s: %d records are there already", path.name, len(self._records))
        with self._writing():
            # Written anew as a whole: what follows a line that was cut short would be lost with it.
            part = path.with_name(path.name + ".new")
            part.write_text("".join(json.dumps(row) + "\n" for row in [head, *kept]))
            part.replace(path)
            self._file = path.open("a")

    def get(self, key: str) -> dict[str, Any] | None:
        """The record of a key, None if there is none yet."""
        return self._records.get(key)

    def put(self, key: str, record: dict[str, Any]) -> None:
        """Keeps the record of a key (a JSON value). Raises: OutputError."""
        self._records[key] = record
        with self._writing():
            line = {"key": key, "record": record, "seconds": round(self.seconds(), 3)}
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()

    def once(self, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The record of a key, made if there is none yet."""
        if key not in self._records:
            self.put(key, make())
        return self._records[key]

    def all(self, keys: Sequence[str]) -> list[dict[str, Any]]:
        """The records of keys that are all there."""
        return [self._records[key] for key in keys]

    def seconds(self) -> float:
        """What this start and those before it have taken; of one that was killed, up to its last record."""
        return self._before + time.monotonic() - self._began

    def close(self) -> None:
        """The records stay on disk, until the result that they are part of is written."""
        self._file.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"--out: {self.path} cannot be written ({error.strerror}); make room or give write permission"
            ) from None


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked of every evaluation. limit: items a task at most; None: all. memorize, arms: what is
    compared. records: results hold a record for each item. options: an evaluation's own settings, JSON
    values."""

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

    def request(self) -> dict[str, Any]:
        """What is asked of whom, but for options; a JSON value."""
        return {
            "checkpoint": self.subject.about["arrays_digest"],
            "tokenizer": self.subject.about["tokenizer_digest"],
            "limit": self.limit,
            "seed": self.seed,
            "memorize": as_settings(self.memorize) if self.arms != (BASELINE,) else None,
            "arms": list(self.arms),
        }

    def belongs(self) -> dict[str, Any]:
        """What records also depend on: configuration and version."""
        return {"config": self.subject.about["config_digest"], "hope_jax": __version__}

    def settings(self, name: str, own: Mapping[str, Any]) -> dict[str, Any]:
        """All that the evaluation's figures depend on, a JSON value; `own`: its settings as resolved."""
        return {"eval": name, **self.request(), **own}

    def journal_path(self, name: str) -> Path:
        """The file of an evaluation's journal."""
        return self.out / f"{name}.partial.jsonl"

    def journal(self, name: str, own: Mapping[str, Any], began: float | None = None) -> Journal:
        """What has been found already under these very settings. began: see `Journal`."""
        return Journal(self.journal_path(name), {**self.settings(name, own), **self.belongs()}, began)


def evaluation(
    name: str,
    asked: Callable[[Run], tuple[Any, ...]],
    figures: Callable[[Mapping[str, Any]], Any],
    check: Callable[[Run], Any] | None = None,
) -> Callable[..., Any]:
    """Makes `evaluate(run)`, which returns an outcome, of a function that measures; with `evaluate.figures`
    (outcome -> {name: Figure}) and `evaluate.check`. asked: of a run the evaluation's settings as resolved,
    and what else has been found on the way. The function gets the run, a journal, and what `asked` returned;
    it returns what `outcome` takes. check: raises ConfigError for options that cannot be, DataError for data;
    None: `asked` does."""

    def decorate(measure: Callable[..., dict[str, Any]]) -> Callable[[Run], dict[str, Any]]:
        def evaluate(run: Run) -> dict[str, Any]:
            began = time.monotonic()
            settings, *found = asked(run)
            journal = run.journal(name, settings, began)
            with contextlib.closing(journal):
                measured = measure(run, journal, settings, *found)
            return outcome(run, name, settings=settings, seconds=journal.seconds(), **measured)

        evaluate.check, evaluate.figures = check or asked, figures  # type: ignore[attr-defined]
        return evaluate

    return decorate


def outcome(
    run: Run,
    name: str,
    *,
    settings: Mapping[str, Any],
    metrics: Mapping[str, Any],
    seconds: float,
    paired: Mapping[str, Any] | None = None,
    items: Sequence[Mapping[str, Any]] = (),
    **more: Any,
) -> dict[str, Any]:
    """A result: what was evaluated, how, and what came out; a JSON value. metrics: "task/metric/arm" ->
    `Estimate`, or `Estimate.as_json` of one with a chance. seconds: of all starts (`Journal.seconds`).
    paired: "task/metric/memorized-baseline" -> `Paired`. Where `use_correct_answer` was asked for, the arm
    `memorized` and its differences carry `"leak": true`. more: further fields; to its `notes` comes what
    `updates` show of arms that did not write alike."""
    own, leaky = run.settings(name, settings), run.memorize.use_correct_answer
    marked, tests = (
        {
            key: {
                **(value if isinstance(value, Mapping) else value.as_json()),
                **({"leak": True} if leaky and MEMORIZED in key.rsplit("/", 1)[-1] else {}),
            }
            for key, value in table.items()
        }
        for table in (metrics, paired or {})
    )
    found = {
        "format": RESULT,
        "version": VERSION,
        "eval": name,
        "subject": run.subject.about,
        "settings": own,
        "settings_digest": digest_of(own),
        "batch_size": run.batch_size,
        "metrics": marked,
        "paired": tests,
        "leak": any(value.get("leak") for value in (*marked.values(), *tests.values())),
        "seconds": seconds,
        **more,
    }
    notes = [*more.get("notes", ()), *_unlike(more.get("updates", {}))]
    found |= {"notes": notes} if notes else {}
    return {**found, "items": list(items)} if run.records else found


def _unlike(updates: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    """A note where the control arm has not written as often as the memorized one: both read as many tokens,
    but a gate opens by surprise, and their texts need not surprise alike."""
    if not {MEMORIZED, CONTROL} <= set(updates):
        return []
    counts = {
        level: (of["updates_applied"], updates[CONTROL][level]["updates_applied"])
        for level, of in updates[MEMORIZED].items()
    }
    apart = {level: pair for level, pair in counts.items() if abs(pair[0] - pair[1]) > _ALIKE * max(pair)}
    if not apart:
        return []
    level = max(apart, key=lambda name: abs(apart[name][0] - apart[name][1]))
    one, other = apart[level]
    return [
        f"The control arm wrote {other:.3g} times an item in {level} where the memorized arm wrote {one:.3g} "
        "times, as their texts do not surprise this model alike: what parts the two arms is not the text "
        "alone. --memorize_surprise_threshold=0 lets both write alike."
    ]


def item_key(place: str, content: bytes) -> str:
    """The key of an item at a place: other content there, of other settings or data, is another item, which
    comparisons must not pair."""
    return f"{place}-{hashlib.sha256(content).hexdigest()[:8]}"


def whole_number(options: Mapping[str, Any], key: str, default: int, least: int = 1) -> int:
    """The option `key`. Raises: ConfigError unless it is a whole number of at least `least`."""
    value = options.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{key}={value!r}: want a whole number of at least {least}")
    return value


def whole_numbers(options: Mapping[str, Any], key: str, default: Sequence[int]) -> tuple[int, ...]:
    """The option `key`: a list, ascending and without repeats. Raises: ConfigError, as `whole_number`."""
    values = _some(key, options.get(key, default))
    return tuple(sorted({whole_number({key: value}, key, 1) for value in values}))


def listed(options: Mapping[str, Any], key: str) -> tuple[str, ...] | None:
    """The option `key`: names, as a list or separated by commas; None without it. Raises: ConfigError."""
    given = options.get(key)
    if given is None:
        return None
    if isinstance(given, str):
        given = [name.strip() for name in given.split(",") if name.strip()]
    if not all(isinstance(name, str) for name in _some(key, given)):
        raise ConfigError(f"{key}={given!r}: want names")
    return tuple(given)


def chosen(options: Mapping[str, Any], key: str, names: Collection[str]) -> tuple[str, ...]:
    """The option `key`: some of `names`, in their order; without it all. Raises: ConfigError for others."""
    given = listed(options, key) or tuple(names)
    for name in given:
        if name not in names:
            raise ConfigError(f"{key}: unknown name {name!r}; {instead(name, names, 'choose from')}")
    return tuple(name for name in names if name in given)


def _some(key: str, value: Any) -> Sequence[Any]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise ConfigError(f"{key}={value!r}: want a list of at least one")
    return value
