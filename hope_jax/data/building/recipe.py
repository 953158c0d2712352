"""The YAML file that describes a mixture, as a checked dataclass.

yaml_file.py says what `${NAME:-default}` is in it. Two variables are always there: PYTHON_STDLIB, the folder
of the standard library of the running interpreter, and ASSETS, the embedded corpus. Paths are relative to the
file.
"""

import dataclasses
import math
import os
import re
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from glob import escape, glob, has_magic
from importlib import resources
from pathlib import Path
from typing import Any

from hope_jax.core.errors import ConfigError, instead
from hope_jax.data import tokenizer
from hope_jax.data.building.yaml_file import read_yaml
from hope_jax.data.holdout import HOLDOUT_FRACTION, SPLIT_SALT

READERS = ("jsonl", "parquet", "text", "huggingface")
FILTERS = ("language", "gopher_repetition", "gopher_quality", "c4", "fineweb")
SEPARATORS = ("form_feed", "none")
_TEXTS = (
    "glob", "field", "dataset", "config", "data_files", "revision", "split", "fallback_split", "licence",
    "origin",
)  # fmt: skip

_MOST = {"n_grams": 100, "num_buckets": 1000, "hashes_per_bucket": 1000, "seed": 2**32 - 1}

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_LONGEST_NAME = 64


@dataclass(frozen=True)
class Source:
    """One source of a mixture.

    weight: share of the training tokens. reader: of `READERS`. paths: files, or folders in which `glob` picks
    files. field: that holds the text (jsonl, parquet, huggingface). separator: between documents of a file
    (text): "form_feed", a line with nothing else, or "none". dataset, config, data_files, revision, split,
    fallback_split: as for `datasets.load_dataset`; the fallback is read where there is no such split.
    shards: tasks that read the source, and files per split. limit: documents that the reader may pass on to
    the filters; those that it rejects itself (empty, too_short, invalid_utf8, ...) do not count. Each task
    has an equal share, and one whose files hold less leaves the source short of it. min_characters,
    max_bytes: of a document's text. filters: name -> options, applied in this order.
    """

    name: str
    weight: float
    reader: str
    paths: tuple[Path, ...] = ()
    glob: str | None = None
    field: str = "text"
    separator: str = "form_feed"
    dataset: str = ""
    config: str | None = None
    data_files: str | None = None
    revision: str | None = None
    split: str = "train"
    fallback_split: str | None = None
    shards: int = 1
    limit: int | None = None
    min_characters: int = 32
    max_bytes: int = 2**20
    filters: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    licence: str = ""
    origin: str = ""


@dataclass(frozen=True)
class Dedup:
    """Removal of duplicates over the whole mixture: the first source that has a text keeps it.

    exact: of equal texts. minhash: of near-equal ones; options of datatrove's MinhashConfig, None: off.
    """

    exact: bool = True
    minhash: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Mixture:
    """A mixture. out: folder of the shards. statistics: file, None: not written. words: how words are found
    for filters and near duplicates: "regex", or a language that datatrove has a tokenizer for (which may
    need packages and downloads). train_tokens: of the run that the epochs in the statistics are of. slurm,
    ray: further arguments of these executors."""

    path: Path
    out: Path
    tokenizer: str
    sources: tuple[Source, ...]
    row_tokens: int = 2048
    document_multiple: int = 1
    holdout: float = HOLDOUT_FRACTION
    salt: str = SPLIT_SALT
    dedup: Dedup = dataclasses.field(default_factory=Dedup)
    words: str = "regex"
    statistics: Path | None = None
    train_tokens: float | None = None
    slurm: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    ray: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def load_manifest(path: Path, environment: Mapping[str, str] | None = None) -> Mixture:
    """Reads and checks a manifest. `environment`: in place of the process's.

    Raises: ConfigError: names the key, the value and the remedy.
    """
    own = {
        "PYTHON_STDLIB": sysconfig.get_path("stdlib"),
        "ASSETS": str(resources.files("hope_jax.data") / "assets"),
    }
    variables = {**own, **(os.environ if environment is None else environment)}
    return _mixture(path, read_yaml(path, variables))


def _mixture(path: Path, raw: Any) -> Mixture:
    where, folder = str(path), path.resolve().parent
    given = _mapping(raw, where, set(_names(Mixture)) - {"path"}, {"out", "tokenizer", "sources"})
    named = given["sources"]
    if not isinstance(named, dict) or not named:
        raise ConfigError(f"{where}: sources={named!r}: want a mapping of names to sources")
    sources = tuple(_source(f"{where}: sources.{name}", name, one, folder) for name, one in named.items())
    total = math.fsum(s.weight for s in sources)
    if abs(total - 1) > 1e-6:
        raise ConfigError(f"{where}: the sources' weights add up to {total:.6g}; want 1")
    values = {
        k: v for k, v in given.items() if k not in ("sources", "out", "dedup", "statistics", "tokenizer")
    }
    values["out"] = (folder / _text(given, "out", where)).resolve()
    if given.get("statistics") is not None:
        values["statistics"] = folder / _text(given, "statistics", where)
    model = _text(given, "tokenizer", where)
    values["tokenizer"] = model if model == tokenizer.EMBEDDED else str(folder / model)
    mixture = Mixture(
        path=path, sources=sources, dedup=_dedup(f"{where}: dedup", given.get("dedup", {})), **values
    )
    for key, least in (("row_tokens", 2), ("document_multiple", 1)):
        _whole(getattr(mixture, key), f"{where}: {key}", least)
    if mixture.row_tokens > 2**16 - 1 or mixture.row_tokens % mixture.document_multiple:
        raise ConfigError(
            f"{where}: row_tokens={mixture.row_tokens}: want a multiple of document_multiple="
            f"{mixture.document_multiple}, at most 65535"
        )
    _number(mixture.holdout, f"{where}: holdout", 0, 1)
    for key in ("salt", "words"):
        if not isinstance(getattr(mixture, key), str):
            raise ConfigError(f"{where}: {key}={getattr(mixture, key)!r}: want a text")
    if mixture.train_tokens is not None:
        _number(mixture.train_tokens, f"{where}: train_tokens", 0, math.inf)
    for key in ("slurm", "ray"):
        if not isinstance(getattr(mixture, key), dict):
            raise ConfigError(f"{where}: {key}={getattr(mixture, key)!r}: want a mapping of arguments")
    return mixture


def _source(where: str, name: Any, raw: Any, folder: Path) -> Source:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(f"{where}: want a name of small letters, digits and _, beginning with a letter")
    if len(name) > _LONGEST_NAME:
        raise ConfigError(
            f"{where}: want a name of at most {_LONGEST_NAME} characters; folders are named by it"
        )
    given = _mapping(raw, where, set(_names(Source)) - {"name"}, {"weight", "reader"})
    values = {key: value for key, value in given.items() if value is not None}
    values |= {"paths": _paths(where, given.get("paths") or [], folder), **_local(where, values, folder)}
    source = Source(name=name, **values)
    _check_source(where, source)
    _mapping(source.filters, f"{where}.filters", set(FILTERS), set())
    filters = {key: options or {} for key, options in source.filters.items()}
    for key, options in filters.items():
        if not isinstance(options, dict):
            raise ConfigError(f"{where}.filters.{key}={options!r}: want a mapping of options, {{}} for none")
    return replace(source, filters=filters)


def _paths(where: str, paths: Any, folder: Path) -> tuple[Path, ...]:
    """Absolute, from paths relative to the manifest's folder."""
    paths = [paths] if isinstance(paths, str) else paths
    if not isinstance(paths, list) or not all(isinstance(p, str) and p.strip() for p in paths):
        raise ConfigError(f"{where}.paths={paths!r}: want a path or a list of paths, none of them empty")
    return tuple((folder / p).resolve() for p in paths)


def _local(where: str, values: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Of a dataset on a local disk what is relative to the manifest's folder, absolute."""
    found = {}
    dataset, data_files = values.get("dataset"), values.get("data_files")
    if isinstance(dataset, str) and dataset.strip() and (folder / dataset).exists():
        found["dataset"] = str(folder / dataset)
        if has_magic(found["dataset"]):  # which would be taken for other folders that fit it
            raise ConfigError(
                f"{where}.dataset={found['dataset']!r}: the datasets library takes *, ? and [ in a "
                "folder's path for a pattern; move it, or set `dataset: json` (or parquet) and its "
                "files as `data_files`"
            )
    if isinstance(data_files, str) and data_files.strip() and not Path(data_files).is_absolute():
        pattern = str(Path(escape(str(folder))) / data_files)
        found["data_files"] = pattern if glob(pattern, recursive=True) else data_files
    return found


def _check_source(where: str, source: Source) -> None:
    """All values but the filters. Raises: ConfigError."""
    _number(source.weight, f"{where}.weight", 0, 1, top=True)
    for key, choices in (("reader", READERS), ("separator", SEPARATORS)):
        if getattr(source, key) not in choices:
            raise ConfigError(f"{where}.{key}={getattr(source, key)!r}: want one of {', '.join(choices)}")
    remote = source.reader == "huggingface"
    needed, idle = ("dataset", "paths") if remote else ("paths", "dataset")
    if not getattr(source, needed) or getattr(source, idle):
        raise ConfigError(f"{where}: the reader {source.reader} wants `{needed}` and no `{idle}`")
    for key in ("shards", "min_characters", "max_bytes", "limit"):
        if getattr(source, key) is not None:
            _whole(getattr(source, key), f"{where}.{key}", 1)
    for key in _TEXTS:
        if not isinstance(value := getattr(source, key), str | None):
            raise ConfigError(f"{where}.{key}={value!r}: want a text; put it in quotes")
        if value is not None and not value.strip() and value != getattr(Source, key) and key != "glob":
            raise ConfigError(f"{where}.{key}={value!r}: the text is empty; give one, or leave the key out")
    if source.glob is not None:
        try:
            next(Path().glob(source.glob), None)
        except (ValueError, NotImplementedError) as error:
            raise ConfigError(
                f"{where}.glob={source.glob!r}: {error}; want a pattern relative to the folder, such as "
                "**/*.txt"
            ) from None


def _dedup(where: str, raw: Any) -> Dedup:
    given = _mapping(raw, where, {"exact", "minhash"}, set())
    exact, minhash = given.get("exact", True), given.get("minhash")
    if not isinstance(exact, bool):
        raise ConfigError(f"{where}.exact={exact!r}: want true or false")
    if minhash is not None:
        for key, value in _mapping(minhash, f"{where}.minhash", set(_MOST), set()).items():
            _whole(value, f"{where}.minhash.{key}", 1, _MOST[key])
    return Dedup(exact=exact, minhash=minhash)


def _mapping(raw: Any, where: str, allowed: set[str], needed: set[str]) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise ConfigError(f"{where}: want a mapping, got {type(raw).__name__}")
    if unknown := [key for key in raw if key not in allowed]:
        raise ConfigError(
            f"{where}: unknown key {unknown[0]!r}; {instead(str(unknown[0]), sorted(allowed), 'want')}"
        )
    if missing := sorted(needed - {key for key, value in raw.items() if value is not None}):
        raise ConfigError(f"{where}: {missing[0]!r} is missing")
    return raw


def _names(kind: type) -> list[str]:
    return [f.name for f in fields(kind)]


def _text(given: Mapping[str, Any], key: str, where: str) -> str:
    if not isinstance(given[key], str) or not given[key].strip():
        raise ConfigError(f"{where}: {key}={given[key]!r}: want a path")
    return str(given[key])


def _number(value: Any, where: str, above: float, below: float, top: bool = False) -> None:
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not (good and above < value and (value <= below if top else value < below)):
        raise ConfigError(
            f"{where}={value!r}: want a number above {above} and {'at most' if top else 'below'} {below}"
        )


def _whole(value: Any, where: str, least: int, most: int = 2**62) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        above = f", at most {most}" if most < 2**62 else ""
        raise ConfigError(f"{where}={value!r}: want a whole number, at least {least}{above}")
