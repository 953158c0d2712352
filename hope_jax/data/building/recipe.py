"""The YAML file that describes a mixture, as a checked dataclass. Its paths are relative to the file.

Any text in it may hold `${NAME}` or `${NAME:-default}`, a variable of the environment. Where a value is
nothing else, its default is read as YAML, so that `limit: ${C4_LIMIT:-1000}` is a number, and what the
environment holds is a number only if it is written as a plain decimal one, else a text. Two variables are
always there: PYTHON_STDLIB, the standard library of the running interpreter, and ASSETS, the embedded corpus.
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

import yaml

from hope_jax.core.errors import ConfigError, instead
from hope_jax.data import text_files
from hope_jax.data.corpus import HOLDOUT_FRACTION, SPLIT_SALT
from hope_jax.data.tokenizer import EMBEDDED

READERS = ("jsonl", "parquet", "text", "huggingface")
FILTERS = ("language", "gopher_repetition", "gopher_quality", "c4", "fineweb")
SEPARATORS = ("form_feed", "none")
_MOST = {"n_grams": 100, "num_buckets": 1000, "hashes_per_bucket": 1000, "seed": 2**32 - 1}
_LONGEST_NAME = 64
_DECIMAL = re.compile(r"(?P<whole>0|[1-9][0-9]{0,17})(?P<fraction>\.[0-9]{1,17})?")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
# What PyYAML's own constructors raise at values that are not of their tag, such as the date 2020-13-45.
_YAML_ERRORS = (yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError, RecursionError)


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
    """Removal of duplicates over the whole mixture: the first source that has a text keeps it. exact: of
    equal texts. minhash: of near-equal ones; options of datatrove's MinhashConfig, None: off."""

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
    """Reads and checks a manifest. `environment`: in place of the process's. Raises: ConfigError: names the
    key, the value and the remedy."""
    variables = {
        "PYTHON_STDLIB": sysconfig.get_path("stdlib"),
        "ASSETS": str(resources.files("hope_jax.data") / "assets"),
        **(os.environ if environment is None else environment),
    }
    try:
        raw = yaml.load(text_files.decode(path.read_bytes()), _Loader)  # a safe loader, with one more check
    except OSError as error:
        raise ConfigError(f"--manifest={path}: {error.strerror or error}") from None
    except text_files.NotUtf8Error as error:
        raise ConfigError(f"--manifest={path} {error}; convert it, for example with iconv") from None
    except _YAML_ERRORS as error:
        raise ConfigError(f"--manifest={path}: not YAML: {' '.join(str(error).split())}") from None
    try:
        return _mixture(path, _expand(raw, variables, str(path)))
    except RecursionError:
        raise ConfigError(f"--manifest={path}: an anchor (&) holds itself; write out what it means") from None


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, of which YAML's loader drops the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if twice := [key for i, key in enumerate(keys) if key in keys[:i]]:
            raise yaml.YAMLError(f"the key {twice[0]!r} stands twice, {str(node.start_mark).strip()}")
        return super().construct_mapping(node, deep)


def _expand(value: Any, variables: Mapping[str, str], where: str) -> Any:
    """`value` with the variables in its texts replaced, at any depth."""
    if isinstance(value, dict):
        return {key: _expand(item, variables, f"{where}: {key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, variables, where) for item in value]
    if not isinstance(value, str):
        return value
    if "\0" in value:
        raise ConfigError(f"{where}={value!r}: a NUL can be in no path and no name; take it out")

    def look_up(match: re.Match[str]) -> str:
        found = variables.get(match[1]) or match[2]
        if found is None:
            remedy = f"set it, or write a default as ${{{match[1]}:-DEFAULT}}"
            raise ConfigError(f"{where}: the variable {match[1]} is not set; {remedy}")
        return found

    text, whole = _VARIABLE.sub(look_up, value), _VARIABLE.fullmatch(value)
    if whole is None:
        return text
    if variables.get(whole[1]):
        decimal = _DECIMAL.fullmatch(text)
        return text if decimal is None else float(text) if decimal["fraction"] else int(text)
    try:
        scalar = yaml.safe_load(text)
    except _YAML_ERRORS:
        return text
    return text if isinstance(scalar, (dict, list)) else scalar


def _mixture(path: Path, raw: Any) -> Mixture:
    where, folder = str(path), path.resolve().parent
    known = {f.name for f in fields(Mixture)} - {"path"}
    values = dict(_mapping(raw, where, known, {"out", "tokenizer", "sources"}))
    named = values["sources"]
    _want(isinstance(named, dict) and named, f"{where}: sources", named, "a mapping of names to sources")
    sources = tuple(_source(f"{where}: sources.{name}", name, one, folder) for name, one in named.items())
    total = math.fsum(s.weight for s in sources)
    if abs(total - 1) > 1e-6:
        raise ConfigError(f"{where}: the sources' weights add up to {total:.6g}; want 1")
    for key in ("out", "statistics", "tokenizer"):
        if (text := values.get(key)) is not None:
            _want(isinstance(text, str) and text.strip(), f"{where}: {key}", text, "a path")
            values[key] = folder / text
    if raw["tokenizer"] == EMBEDDED:
        values["tokenizer"] = EMBEDDED
    values |= {"out": values["out"].resolve(), "tokenizer": str(values["tokenizer"]), "sources": sources}
    values["dedup"] = _dedup(f"{where}: dedup", values.get("dedup", {}))
    mixture = Mixture(path=path, **values)
    _check_kinds(f"{where}: ", mixture)
    rows, multiple, tokens = mixture.row_tokens, mixture.document_multiple, mixture.train_tokens
    want = f"a multiple of document_multiple={multiple}, from 2 to 65535"
    _want(1 < rows < 2**16 and rows % multiple == 0, f"{where}: row_tokens", rows, want)
    good = _is_number(mixture.holdout) and 0 < mixture.holdout < 1
    _want(good, f"{where}: holdout", mixture.holdout, "a number above 0 and below 1")
    good = tokens is None or (_is_number(tokens) and 0 < tokens < math.inf)
    _want(good, f"{where}: train_tokens", tokens, "a number above 0")
    return mixture


def _source(where: str, name: Any, raw: Any, folder: Path) -> Source:
    if not isinstance(name, str) or not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise ConfigError(f"{where}: want a name of small letters, digits and _, beginning with a letter")
    if len(name) > _LONGEST_NAME:
        raise ConfigError(f"{where}: want a name of at most {_LONGEST_NAME} characters, as folders bear it")
    given = _mapping(raw, where, {f.name for f in fields(Source)} - {"name"}, {"weight", "reader"})
    values = {key: value for key, value in given.items() if value is not None}
    paths = values.get("paths", [])
    paths = [paths] if isinstance(paths, str) else paths
    good = isinstance(paths, list) and all(isinstance(p, str) and p.strip() for p in paths)
    _want(good, f"{where}.paths", paths, "a path or a list of paths, none of them empty")
    values["paths"] = tuple((folder / p).resolve() for p in paths)
    source = Source(name=name, **values)
    _check_source(where, source)
    filters = _mapping(source.filters, f"{where}.filters", set(FILTERS), set())
    filters = {key: options or {} for key, options in filters.items()}
    for key, options in filters.items():
        want = "a mapping of options, {} for none"
        _want(isinstance(options, dict), f"{where}.filters.{key}", options, want)
    return replace(source, filters=filters, **_local(where, source, folder))


def _local(where: str, source: Source, folder: Path) -> dict[str, Any]:
    """Of a dataset on a local disk what is relative to the manifest's folder, absolute."""
    found: dict[str, Any] = {}
    if source.dataset and (folder / source.dataset).exists():
        found["dataset"] = str(folder / source.dataset)
        if has_magic(found["dataset"]):  # which would be taken for other folders that fit it
            raise ConfigError(
                f"{where}.dataset={found['dataset']!r}: the datasets library takes *, ? and [ in a "
                "folder's path for a pattern; move it, or set `dataset: json` (or parquet) and its "
                "files as `data_files`"
            )
    if source.data_files and not Path(source.data_files).is_absolute():
        pattern = str(Path(escape(str(folder))) / source.data_files)
        found["data_files"] = pattern if glob(pattern, recursive=True) else source.data_files
    return found


def _check_source(where: str, source: Source) -> None:
    """All values but the filters. Raises: ConfigError."""
    _check_kinds(f"{where}.", source)
    good = _is_number(source.weight) and 0 < source.weight <= 1
    _want(good, f"{where}.weight", source.weight, "a number above 0 and at most 1")
    for key, choices in (("reader", READERS), ("separator", SEPARATORS)):
        value = getattr(source, key)
        _want(value in choices, f"{where}.{key}", value, f"one of {', '.join(choices)}")
    needed, idle = ("dataset", "paths") if source.reader == "huggingface" else ("paths", "dataset")
    if not getattr(source, needed) or getattr(source, idle):
        raise ConfigError(f"{where}: the reader {source.reader} wants `{needed}` and no `{idle}`")
    try:
        next(Path().glob("*" if source.glob is None else source.glob), None)
    except (ValueError, NotImplementedError) as error:
        want = "want a pattern relative to the folder, such as **/*.txt"
        raise ConfigError(f"{where}.glob={source.glob!r}: {error}; {want}") from None


def _check_kinds(where: str, of: Source | Mixture) -> None:
    """Texts, mappings, and whole numbers, which are at least 1."""
    for f in fields(of):
        at, value = where + f.name, getattr(of, f.name)
        if f.type in (str, str | None):
            good = isinstance(value, str) or (value is None and f.type is not str)
            _want(good, at, value, "a text; put it in quotes")
            if f.name not in ("glob", "salt") and value not in (None, f.default) and not value.strip():
                raise ConfigError(f"{at}={value!r}: the text is empty; give one, or leave the key out")
        elif f.type == Mapping[str, Any]:
            _want(isinstance(value, dict), at, value, "a mapping of arguments")
        elif f.type is int or (f.type == int | None and value is not None):
            _whole(value, at, 1)


def _dedup(where: str, raw: Any) -> Dedup:
    dedup = Dedup(**_mapping(raw, where, {"exact", "minhash"}, set()))
    _want(isinstance(dedup.exact, bool), f"{where}.exact", dedup.exact, "true or false")
    if dedup.minhash is not None:
        for key, value in _mapping(dedup.minhash, f"{where}.minhash", set(_MOST), set()).items():
            _whole(value, f"{where}.minhash.{key}", 1, _MOST[key])
    return dedup


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


def _want(good: Any, where: str, value: Any, want: str) -> None:
    if not good:
        raise ConfigError(f"{where}={value!r}: want {want}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(value: Any, where: str, least: int, most: int = 2**62) -> None:
    above = f", at most {most}" if most < 2**62 else ""
    good = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
    _want(good, where, value, f"a whole number, at least {least}{above}")
