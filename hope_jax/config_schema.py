"""From loose values (config files, command-line overrides, YAML) to the frozen dataclasses, key by key."""

import ast
import dataclasses
import difflib
import math
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias

from ml_collections.config_dict import ConfigDict

from hope_jax.config import ExperimentConfig, Range
from hope_jax.errors import ConfigError

Config: TypeAlias = Mapping[str, Any] | ConfigDict

_HINTS = {int: "a whole number", float: "a number", bool: "true or false", str: "text that is not empty"}


def as_error(problems: Sequence[str]) -> ConfigError:
    """All problems as one error: a line each."""
    if len(problems) == 1:
        return ConfigError(problems[0])
    return ConfigError(
        "\n".join([f"{len(problems)} problems in the configuration:", *(f"- {p}" for p in problems)])
    )


def resolve(config: Config) -> ExperimentConfig:
    """The configuration as frozen dataclasses, every key checked on its own.

    config: a ConfigDict or nested mapping; keys that it lacks take their defaults. Whole numbers are
        accepted for fractional ones, nothing else is converted.

    Raises: ConfigError with all unknown keys, wrong types, unknown choices and numbers out of range.
    """
    problems: list[str] = []
    resolved = _group(ExperimentConfig, config, "", problems)
    if problems:
        raise as_error(problems)
    return typing.cast(ExperimentConfig, resolved)


def as_plain_dict(config: Config) -> dict[str, Any]:
    """Nested plain dicts, in the mapping's own order."""
    return {key: as_plain_dict(v) if isinstance(v, Mapping | ConfigDict) else v for key, v in config.items()}


def key_paths() -> Iterator[tuple[str, Any, dataclasses.Field[Any]]]:
    """Every key as (dotted path, type, field); those of each CMS level under `model.cms_levels.NAME`."""
    yield from _paths(ExperimentConfig, "")


def _paths(group: type, prefix: str) -> Iterator[tuple[str, Any, dataclasses.Field[Any]]]:
    hints = _hints(group)
    for f in dataclasses.fields(group):
        path, kind = prefix + f.name, hints[f.name]
        if dataclasses.is_dataclass(kind):
            yield from _paths(typing.cast(type, kind), path + ".")
            continue
        yield path, kind, f
        entry = _mapping_entry(kind)
        if entry is not None and dataclasses.is_dataclass(entry):
            yield from _paths(typing.cast(type, entry), f"{path}.NAME.")


def set_override(config: dict[str, Any], path: str, text: str) -> None:
    """Set one key of a nested dict, in place, from command-line text. A level or source that the dict lacks
    is added at the end.

    Raises: ConfigError for an unknown key, or text that is not of the key's type.
    """
    kind, names = key_type(path), path.split(".")
    value = _parse(kind, text, path)
    for name in names[:-1]:
        config = config.setdefault(name, {})
        if not isinstance(config, dict):
            raise ConfigError(f"{path}: the config file has a plain value at {name!r}, want a group of keys")
    config[names[-1]] = value


def key_type(path: str) -> Any:
    """The type of the key at a dotted path. Raises: ConfigError naming the nearest known keys."""
    kind: Any = ExperimentConfig
    names = path.split(".")
    for depth, name in enumerate(names):
        parent = ".".join(names[:depth])
        entry = _mapping_entry(kind)
        if dataclasses.is_dataclass(kind):
            hints = _hints(typing.cast(type, kind))
            if name not in hints:
                raise ConfigError(_unknown(parent, name, hints))
            kind = hints[name]
        elif entry is not None and name.isidentifier():
            kind = entry
        else:
            raise ConfigError(f"{path}: {parent} has no keys of its own")
    return kind


def _hints(group: type) -> dict[str, Any]:
    return typing.get_type_hints(group, include_extras=True)


def _mapping_entry(kind: Any) -> Any | None:
    """The type of a mapping's values; None if `kind` is no mapping."""
    return typing.get_args(kind)[1] if typing.get_origin(kind) is Mapping else None


def _optional(kind: Any) -> Any | None:
    """X of `X | None`; None if `kind` is not optional."""
    args = typing.get_args(kind)
    if typing.get_origin(kind) is not Annotated and type(None) in args:
        return next(a for a in args if a is not type(None))
    return None


def _unknown(parent: str, name: str, known: Mapping[str, Any]) -> str:
    full = f"{parent}.{name}" if parent else name
    elsewhere = [path for path, *_ in key_paths() if path.rsplit(".", 1)[-1] == name]
    near = [f"{parent}.{n}" if parent else n for n in difflib.get_close_matches(name, known, n=3)]
    guesses = elsewhere[:3] or near
    if guesses:
        return f"{full}: unknown key; did you mean {' or '.join(guesses)}?"
    return f"{full}: unknown key; known here: {', '.join(known)}"


def describe(kind: Any) -> str:
    """What a key takes, in words."""
    inner = _optional(kind)
    if inner is not None:
        return f"{describe(inner)}, or None"
    if typing.get_origin(kind) is Annotated:
        base, bounds = typing.get_args(kind)
        return f"{_HINTS[base]}, {bounds}"
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(typing.get_args(kind))
    if _mapping_entry(kind) is not None:
        return "a group of keys"
    return _HINTS.get(kind, "a group of keys")


def _group(group: type, values: Any, path: str, problems: list[str]) -> Any:
    if not isinstance(values, Mapping | ConfigDict):
        problems.append(f"{path or 'config'}: want a group of keys, got {values!r}")
        return None
    hints, out = _hints(group), {}
    for name, value in values.items():
        if name not in hints:
            problems.append(_unknown(path, str(name), hints))
        else:
            out[name] = _value(hints[name], value, f"{path}.{name}" if path else name, problems)
    return group(**out)


def _value(kind: Any, value: Any, path: str, problems: list[str]) -> Any:
    wanted, inner = describe(kind), _optional(kind)
    if inner is not None:
        if value is None:
            return None
        kind = inner
    entry = _mapping_entry(kind)
    if dataclasses.is_dataclass(kind):
        return _group(typing.cast(type, kind), value, path, problems)
    if entry is not None:
        return _mapping(entry, value, path, problems)
    base, bounds = typing.get_args(kind) if typing.get_origin(kind) is Annotated else (kind, None)
    if base is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    choices = typing.get_args(kind) if typing.get_origin(kind) is Literal else ()
    if choices:
        if value not in choices:
            near = difflib.get_close_matches(str(value), choices, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            problems.append(f"{path}: want {wanted}; got {value!r}{hint}")
    elif type(value) is not base or not _in_range(value, bounds) or (base is str and not value.strip()):
        problems.append(f"{path}: want {wanted}; got {value!r}")
    return value


def _in_range(value: Any, bounds: Range | None) -> bool:
    finite = not isinstance(value, float) or math.isfinite(value)
    return finite and (bounds is None or bounds.holds(value))


def _mapping(entry: Any, value: Any, path: str, problems: list[str]) -> dict[str, Any]:
    if not isinstance(value, Mapping | ConfigDict):
        problems.append(f"{path}: want a group of keys, got {value!r}")
        return {}
    out = {}
    for name, item in value.items():
        if not (isinstance(name, str) and name.isidentifier()):
            problems.append(f"{path}: {name!r} is no name; use letters, digits and underscores")
        else:
            out[name] = _value(entry, item, f"{path}.{name}", problems)
    return out


def _parse(kind: Any, text: str, path: str) -> Any:
    """Command-line text as a value of the key's type; ranges and choices are left to `resolve`."""
    inner = _optional(kind)
    if inner is not None:
        return None if text.lower() == "none" else _parse(inner, text, path)
    base = typing.get_args(kind)[0] if typing.get_origin(kind) is Annotated else kind
    if base is str or typing.get_origin(base) is Literal:
        return text
    try:
        if base is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        return base(text) if base in (int, float) else ast.literal_eval(text)
    except (ValueError, KeyError, SyntaxError):
        example = """, for example "{'name': {...}}\"""" if base not in _HINTS else ""
        raise ConfigError(f"{path}: want {describe(kind)}{example}; got {text!r}") from None
