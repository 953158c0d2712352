"""Data of class-incremental classification: texts with a label, the order in which classes arrive, and the
examples and test texts that are drawn of them.

Files, as they are published; the folder is given, nothing is downloaded:
- `clinc`: `clinc_data_full.json` (splits of [utterance, intent]; those out of scope are left out) and
  `clinc_domains.json` (domain -> intents): a step is a domain, 10 of 15 classes;
- `banking`: `banking77_train.csv`, `banking77_test.csv` (text, category): 7 steps of 11 classes;
- `dbpedia`: `DBPEDIA_train.csv`, `DBPEDIA_test.csv` (text, l1, l2, l3): the 70 classes of l2, 7 steps of 10.
"""

import csv
import io
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hope_jax.core.errors import ConfigError, DataError, instead
from hope_jax.core.paths import as_path
from hope_jax.data import text_files
from hope_jax.evals.suite.run import Run, listed, whole_number

Examples = dict[str, list[str]]
"""Class -> texts."""
Pairs = list[tuple[str, str]]
"""(text, class)."""


class Dataset(NamedTuple):
    """steps: classes in the order in which they arrive. train, test: texts of each class, no text in both."""

    name: str
    steps: tuple[tuple[str, ...], ...]
    train: Examples
    test: Examples


class Task(NamedTuple):
    """steps: classes by step. train, validation, test: (text, class) of each step, drawn with the seed; of
    training texts in a mixed order."""

    name: str
    steps: tuple[tuple[str, ...], ...]
    train: list[Pairs]
    validation: list[Pairs]
    test: list[Pairs]

    @property
    def classes(self) -> list[str]:
        """All, in the order in which they arrive."""
        return self.known(len(self.steps) - 1)

    def known(self, step: int) -> list[str]:
        """The classes until a step."""
        return [label for labels in self.steps[: step + 1] for label in labels]


def tasks_of(run: Run) -> tuple[list[Task], dict[str, Any]]:
    """What the options ask for, and the settings that say so. Raises: ConfigError, DataError."""
    given = run.options.get("intents")
    if given is None:
        raise ConfigError(
            "intents is missing; want the folder of the classification data (docs/evals/continual.md)"
        )
    examples = whole_number(run.options, "examples", 20)
    count = whole_number(run.options, "tests", 150)
    if run.limit:
        examples, count = min(examples, run.limit), min(count, run.limit)
    most = whole_number(run.options, "class_steps", 1000)
    folder = as_path("intents", str(given))
    names = listed(run.options, "datasets") or available(folder)
    if not names:
        raise ConfigError(
            f"intents={folder}: no known data set is there; docs/evals/continual.md names the files"
        )
    tasks = [draw(load(name, folder, run.seed, most), run.seed, examples, count) for name in names]
    own = {
        "datasets": list(names),
        "examples": examples,
        "tests": count,
        "classes": {task.name: [len(step) for step in task.steps] for task in tasks},
    }
    return tasks, own


def draw(data: Dataset, seed: int, examples: int, tests: int) -> Task:
    """Texts of each class by the seed, so that another number of them draws the same first ones."""
    parts: tuple[list[Pairs], list[Pairs], list[Pairs]] = [], [], []
    for number, step in enumerate(data.steps):
        rng = np.random.default_rng([seed, number])
        train: Pairs = []
        validation: Pairs = []
        test: list[Pairs] = []
        for label in step:
            texts = [data.train[label][i] for i in rng.permutation(len(data.train[label]))]
            train += [(text, label) for text in texts[:examples]]
            validation += [(text, label) for text in texts[examples : examples + 2]]
            test.append([(data.test[label][i], label) for i in rng.permutation(len(data.test[label]))])
        mixed = np.random.default_rng([seed, number, 1]).permutation(len(train))
        rounds = [pairs[i] for i in range(max(map(len, test))) for pairs in test if i < len(pairs)]
        for part, own in zip(parts, ([train[i] for i in mixed], validation, rounds[:tests]), strict=True):
            part.append(own)
    return Task(data.name, data.steps, *parts)


def label_text(label: str) -> str:
    """A class's name as words: `card_arrival`, `SportsTeam` -> "card arrival", "sports team"."""
    return " ".join(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", label).replace("_", " ").split()).lower()


def available(folder: Path) -> list[str]:
    """Names of the data sets whose files are all in a folder."""
    return [name for name, source in _SOURCES.items() if all((folder / f).is_file() for f in source.files)]


def load(name: str, folder: Path, seed: int, max_steps: int | None = None) -> Dataset:
    """A data set with its classes in the order that the seed gives (of CLINC: its domains). max_steps: only
    the first ones. Raises: ConfigError for an unknown name, DataError for a file that is missing or not as
    published."""
    if name not in _SOURCES:
        raise ConfigError(f"datasets: no data set {name!r}; {instead(name, _SOURCES)}")
    source = _SOURCES[name]
    for file in source.files:
        if not (folder / file).is_file():
            raise DataError(
                f"intents={folder}: {file} of {name} is not there; it needs {', '.join(source.files)}"
            )
    try:
        all_train, all_test, groups = source.read(*(folder / file for file in source.files))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(f"intents={folder}: the files of {name} are not as published ({error!r})") from None
    rng = np.random.default_rng([seed, len(all_train)])
    if groups is None:
        classes = [sorted(all_train)[i] for i in rng.permutation(len(all_train))]
        steps = [classes[i : i + source.per_step] for i in range(0, len(classes), source.per_step)]
    else:
        steps = [groups[i] for i in rng.permutation(len(groups))]
    chosen = tuple(tuple(step) for step in steps[:max_steps])
    known = {_plain(text) for texts in all_train.values() for text in texts}
    labels = [label for step in chosen for label in step]
    train = {label: all_train.get(label, []) for label in labels}
    test = {label: [t for t in all_test.get(label, []) if _plain(t) not in known] for label in labels}
    if empty := [label for label in labels if not train[label] or not test[label]]:
        raise DataError(f"intents={folder}: class {empty[0]!r} of {name} lacks training or test texts")
    return Dataset(name, chosen, train, test)


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _read(path: Path) -> str:
    try:
        return text_files.decode(path.read_bytes())
    except text_files.NotUtf8Error as error:
        raise DataError(f"intents: {path} {error}; convert it, for example with iconv") from None


def _by_class(pairs: Iterable[Sequence[str]]) -> Examples:
    found: Examples = {}
    for text, label in pairs:
        found.setdefault(str(label), []).append(" ".join(text.split()))
    return found


_Raw = tuple[Examples, Examples, list[list[str]] | None]
"""Training and test texts, and the classes in groups if the data have some."""


def _clinc(data: Path, groups: Path) -> _Raw:
    splits, domains = text_files.parse_json(_read(data)), text_files.parse_json(_read(groups))
    steps = [list(map(str, domains[name])) for name in sorted(domains)]
    return _by_class(splits["train"]), _by_class(splits["test"]), steps


def _tables(label: str) -> Callable[[Path, Path], _Raw]:
    """A reader of CSV files with the columns `text` and `label`."""

    def rows(path: Path) -> Examples:
        found = csv.DictReader(io.StringIO(_read(path), newline=""))
        return _by_class((row["text"], row[label]) for row in found)

    return lambda train, test: (rows(train), rows(test), None)


class _Source(NamedTuple):
    files: tuple[str, str]
    per_step: int
    read: Callable[..., _Raw]


_SOURCES = {
    "clinc": _Source(("clinc_data_full.json", "clinc_domains.json"), 15, _clinc),
    "banking": _Source(("banking77_train.csv", "banking77_test.csv"), 11, _tables("category")),
    "dbpedia": _Source(("DBPEDIA_train.csv", "DBPEDIA_test.csv"), 10, _tables("l2")),
}
