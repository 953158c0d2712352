"""The YAML file that describes a mixture, as a checked dataclass. Its paths are relative to the file, and a
key that is null counts as left out.

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
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from glob import escape, glob, has_magic
from importlib import resources
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from hope_jax.core.errors import ConfigError, instead
from hope_jax.core.ranges import Count, Positive, Range, Share, fits
from hope_jax.data import text_files
from hope_jax.data.corpus import HOLDOUT_FRACTION, SPLIT_SALT
from hope_jax.data.tokenizer import EMBEDDED

FILTERS = ("language", "gopher_repetition", "gopher_quality", "c4", "fineweb")
_MOST = {"n_grams": 100, "num_buckets": 1000, "hashes_per_bucket": 1000, "seed": 2**32 - 1}
_IN_FILE = {
    "paths": str | list[str], "out": str, "statistics": str, "sources": Mapping, "dedup": Mapping,
    "minhash": Mapping | None, "filters": Mapping,
}  # fmt: skip
"""Types of keys that a manifest has in another form than its dataclass."""
_MAY_BE_EMPTY = ("glob", "salt", "dataset", "licence", "origin")
_TOLD = {
    int: "a whole number", float: "a number", bool: "true or false", str: "a text, in quotes",
    Mapping: "a mapping, {} for none", NoneType: "null",
}  # fmt: skip
_LONGEST_NAME = 64
_DECIMAL = re.compile(r"(?P<whole>0|[1-9][0-9]{0,17})(?P<fraction>\.[0-9]{1,17})?")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
# What PyYAML's own constructors raise at values that are not of their tag, such as the date 2020-13-45.
_YAML_ERRORS = (yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError, RecursionError)


@dataclass(frozen=True)
class Source:
    """One source of a mixture.

    weight: share of the training tokens. paths: files, or folders in which `glob` picks
    files. field: that holds the text (jsonl, parquet, huggingface). separator: between documents of a file
    (text): "form_feed", a line with nothing else, or "none". dataset, config, data_files, revision, split,
    fallback_split: as for `datasets.load_dataset`; the fallback is read where there is no such split.
    shards: tasks that read the source, and files per split. limit: documents that the reader may pass on to
    the filters; those that it rejects itself (empty, too_short, invalid_utf8, ...) do not count. Each task
    has an equal share, and one whose files hold less leaves the source short of it. min_characters,
    max_bytes: of a document's text. filters: name -> options, applied in this order.
    """

    name: str
    weight: Annotated[float, Range(0, 1, above_low=True)]
    reader: Literal["jsonl", "parquet", "text", "huggingface"]
    paths: tuple[Path, ...] = ()
    glob: str | None = None
    field: str = "text"
    separator: Literal["form_feed", "none"] = "form_feed"
    dataset: str = ""
    config: str | None = None
    data_files: str | None = None
    revision: str | None = None
    split: str = "train"
    fallback_split: str | None = None
    shards: Count = 1
    limit: Count | None = None
    min_characters: Count = 32
    max_bytes: Count = 2**20
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
    row_tokens: Count = 2048
    document_multiple: Count = 1
    holdout: Share = HOLDOUT_FRACTION
    salt: str = SPLIT_SALT
    dedup: Dedup = dataclasses.field(default_factory=Dedup)
    words: str = "regex"
    statistics: Path | None = None
    train_tokens: Positive | None = None
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
    values = checked(raw, f"{where}: ", _kinds(Mixture, "path"), ("out", "tokenizer", "sources"))
    _want(values["sources"], f"{where}: sources", values["sources"], "a mapping of names to sources")
    named = values["sources"].items()
    sources = tuple(_source(f"{where}: sources.{name}", name, one, folder) for name, one in named)
    total = math.fsum(s.weight for s in sources)
    if abs(total - 1) > 1e-6:
        raise ConfigError(f"{where}: the sources' weights add up to {total:.6g}; want 1")
    own = {"out": (folder / values["out"]).resolve(), "sources": sources}
    if values["tokenizer"] != EMBEDDED:
        own["tokenizer"] = str(folder / values["tokenizer"])
    if "statistics" in values:
        own["statistics"] = folder / values["statistics"]
    if "dedup" in values:
        own["dedup"] = _dedup(f"{where}: dedup.", values["dedup"])
    mixture = Mixture(path=path, **{**values, **own})
    rows, multiple = mixture.row_tokens, mixture.document_multiple
    want = f"a multiple of document_multiple={multiple}, from 2 to 65535"
    _want(1 < rows < 2**16 and rows % multiple == 0, f"{where}: row_tokens", rows, want)
    return mixture


def _source(where: str, name: Any, raw: Any, folder: Path) -> Source:
    if not isinstance(name, str) or not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise ConfigError(f"{where}: want a name of small letters, digits and _, beginning with a letter")
    if len(name) > _LONGEST_NAME:
        raise ConfigError(f"{where}: want a name of at most {_LONGEST_NAME} characters, as folders bear it")
    values = checked(raw, f"{where}.", _kinds(Source, "name"), ("weight", "reader"))
    paths = values.get("paths", [])
    paths = [paths] if isinstance(paths, str) else paths
    _want(all(map(str.strip, paths)), f"{where}.paths", paths, "paths, none of them empty")
    values["paths"] = tuple((folder / p).resolve() for p in paths)
    filters = {key: {} if options is None else options for key, options in values.get("filters", {}).items()}
    checked(filters, f"{where}.filters.", dict.fromkeys(FILTERS, Mapping))
    source = Source(**{**values, "name": name, "filters": filters})
    idle = "paths" if source.reader == "huggingface" else "dataset"
    has = {"paths": bool(paths), "dataset": bool(source.dataset.strip())}
    if has[idle] or not any(has.values()):
        needed = "dataset" if idle == "paths" else "paths"
        raise ConfigError(f"{where}: the reader {source.reader} wants `{needed}` and no `{idle}`")
    try:
        next(Path().glob("*" if source.glob is None else source.glob), None)
    except (ValueError, NotImplementedError) as error:
        want = "want a pattern relative to the folder, such as **/*.txt"
        raise ConfigError(f"{where}.glob={source.glob!r}: {error}; {want}") from None
    return replace(source, **_local(where, source, folder))


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


def _dedup(where: str, raw: Any) -> Dedup:
    dedup = Dedup(**checked(raw, where, _kinds(Dedup)))
    if dedup.minhash is not None:
        kinds = {key: Annotated[int, Range(1, most)] for key, most in _MOST.items()}
        return replace(dedup, minhash=checked(dedup.minhash, f"{where}minhash.", kinds))
    return dedup


def _kinds(of: type, *without: str) -> dict[str, Any]:
    """The types of a dataclass's keys, as they are in a manifest."""
    kinds = get_type_hints(of, include_extras=True).items()
    return {name: _IN_FILE.get(name, kind) for name, kind in kinds if name not in without}


def checked(raw: Any, where: str, kinds: Mapping[str, Any], needed: Collection[str] = ()) -> dict[str, Any]:
    """The values of a mapping whose keys have types, without those that are null. where: what stands before
    a key in errors. Raises: ConfigError: a key is unknown or missing, or a value is of another type."""
    group = where.rstrip(".: ")
    if not isinstance(raw, dict):
        raise ConfigError(f"{group}: want a mapping, got {type(raw).__name__}")
    values = {key: value for key, value in raw.items() if value is not None}
    if unknown := [key for key in raw if key not in kinds]:
        raise ConfigError(
            f"{group}: unknown key {unknown[0]!r}; {instead(str(unknown[0]), sorted(kinds), 'want')}"
        )
    if missing := sorted(set(needed) - set(values)):
        raise ConfigError(f"{group}: {missing[0]!r} is missing")
    for key, value in values.items():
        _want(fits(kinds[key], value), where + key, value, told(kinds[key]))
        if isinstance(value, str) and not value.strip() and key not in _MAY_BE_EMPTY:
            raise ConfigError(f"{where}{key}={value!r}: the text is empty; give one, or leave the key out")
    return values


def _want(good: Any, where: str, value: Any, want: str) -> None:
    if not good:
        raise ConfigError(f"{where}={value!r}: want {want}")


def told(kind: Any) -> str:
    """A type in words."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return f"{told(parts[0])}, {parts[1]}"
    if origin is Literal:
        return f"one of {', '.join(parts)}"
    if origin in (Union, UnionType):
        return ", or ".join(map(told, parts))
    if origin in (list, tuple):
        return f"a list of ({'; '.join(told(part) for part in parts if part is not ...)})"
    return _TOLD[origin or kind]
