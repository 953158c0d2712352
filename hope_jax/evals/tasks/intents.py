"""Data for class-incremental classification: texts with a label, and the order in which classes arrive.

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
from typing import NamedTuple

import numpy as np

from hope_jax.core.errors import ConfigError, DataError, instead
from hope_jax.data import text_files

Examples = dict[str, list[str]]
"""Class -> texts."""


class Dataset(NamedTuple):
    """steps: classes in the order in which they arrive. train, test: texts of each class, no text in both."""

    name: str
    steps: tuple[tuple[str, ...], ...]
    train: Examples
    test: Examples


class _Raw(NamedTuple):
    train: Examples
    test: Examples
    groups: list[list[str]] | None


def label_text(label: str) -> str:
    """A class's name as words: `card_arrival`, `SportsTeam` -> "card arrival", "sports team"."""
    return " ".join(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", label).replace("_", " ").split()).lower()


def available(folder: Path) -> list[str]:
    """Names of the data sets whose files are all in a folder."""
    return [name for name, source in _SOURCES.items() if all((folder / f).is_file() for f in source.files)]


def load(name: str, folder: Path, seed: int, max_steps: int | None = None) -> Dataset:
    """A data set with its classes in the order that the seed gives (of CLINC: its domains).

    max_steps: only the first ones.

    Raises:
      ConfigError: an unknown name.
      DataError: a file that is missing or not as published.
    """
    if name not in _SOURCES:
        raise ConfigError(f"datasets: no data set {name!r}; {instead(name, _SOURCES)}")
    source = _SOURCES[name]
    for file in source.files:
        if not (folder / file).is_file():
            raise DataError(
                f"intents={folder}: {file} of {name} is not there; it needs {', '.join(source.files)}"
            )
    try:
        raw = source.read(folder)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(f"intents={folder}: the files of {name} are not as published ({error!r})") from None
    rng = np.random.default_rng([seed, len(raw.train)])
    if raw.groups is None:
        classes = [sorted(raw.train)[i] for i in rng.permutation(len(raw.train))]
        steps = [classes[i : i + source.per_step] for i in range(0, len(classes), source.per_step)]
    else:
        steps = [raw.groups[i] for i in rng.permutation(len(raw.groups))]
    chosen = tuple(tuple(step) for step in steps[:max_steps])
    known = {_plain(text) for texts in raw.train.values() for text in texts}
    train = {label: raw.train.get(label, []) for step in chosen for label in step}
    test = {
        label: [text for text in raw.test.get(label, []) if _plain(text) not in known]
        for step in chosen
        for label in step
    }
    if empty := [label for label in train if not train[label] or not test[label]]:
        raise DataError(f"intents={folder}: class {empty[0]!r} of {name} lacks training or test texts")
    return Dataset(name, chosen, train, test)


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _clinc(folder: Path) -> _Raw:
    files = ("clinc_data_full.json", "clinc_domains.json")
    splits, domains = (text_files.parse_json(_read(folder / name)) for name in files)
    groups = [list(map(str, domains[name])) for name in sorted(domains)]
    return _Raw(_by_class(splits["train"]), _by_class(splits["test"]), groups)


def _banking(folder: Path) -> _Raw:
    train, test = (
        _by_class((row["text"], row["category"]) for row in _rows(folder / f"banking77_{split}.csv"))
        for split in ("train", "test")
    )
    return _Raw(train, test, None)


def _dbpedia(folder: Path) -> _Raw:
    train, test = (
        _by_class((row["text"], row["l2"]) for row in _rows(folder / f"DBPEDIA_{split}.csv"))
        for split in ("train", "test")
    )
    return _Raw(train, test, None)


def _rows(path: Path) -> Iterable[dict[str, str]]:
    yield from csv.DictReader(io.StringIO(_read(path), newline=""))


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


class _Source(NamedTuple):
    files: tuple[str, ...]
    per_step: int
    read: Callable[[Path], _Raw]


_SOURCES = {
    "clinc": _Source(("clinc_data_full.json", "clinc_domains.json"), 15, _clinc),
    "banking": _Source(("banking77_train.csv", "banking77_test.csv"), 11, _banking),
    "dbpedia": _Source(("DBPEDIA_train.csv", "DBPEDIA_test.csv"), 10, _dbpedia),
}
