"""From loose values (config files, command-line overrides, YAML) to the frozen dataclasses, key by key."""

import ast
import dataclasses
import difflib
import itertools
import math
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias

from ml_collections.config_dict import ConfigDict

from hope_jax.config.experiment import ExperimentConfig
from hope_jax.core.errors import ConfigError, instead
from hope_jax.core.ranges import Range
from hope_jax.core.types import FrozenMapping
from hope_jax.memory.levels import Level

Config: TypeAlias = Mapping[str, Any] | ConfigDict

_NAMED_BY_THE_TASK = ("data.task_options",)
"""Mappings whose names are known from elsewhere, which checks them."""

_NO_NAME = "is no name; use letters, digits and underscores"

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
    resolved = _value(ExperimentConfig, config, "", problems, ExperimentConfig())
    if problems:
        raise as_error(problems)
    return typing.cast(ExperimentConfig, resolved)


def as_plain_dict(config: Config) -> dict[str, Any]:
    """Nested plain dicts, in the mapping's own order."""
    return {key: as_plain_dict(v) if isinstance(v, Mapping | ConfigDict) else v for key, v in config.items()}


def key_paths() -> Iterator[tuple[str, Any, dataclasses.Field[Any]]]:
    """Every key as (dotted path, type, field); those of each CMS level under `cms.levels.NAME`."""
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
    """Change one key of a nested dict, in place, from command-line text.

    Text for a group (`{...}`) changes the keys that it names. A level, or a weight of a mixture, must be
    there; `+NAME` adds one at the end, None drops one, and text for their mapping replaces them all.

    Raises: ConfigError for an unknown key or name, or text that is not of the key's type.
    """
    group, steps = config, list(_steps(path))
    for kind, parent, written, _ in steps[:-1]:
        group = _group_at(group, _name_in(kind, group, written, parent), path)
    kind, parent, written, below = steps[-1]
    name = _name_in(kind, group, written, parent)
    if _mapping_entry(kind) is not None and written == name and text.lower() == "none":
        group.pop(name, None)
    else:
        _put(group, name, below, parse(below, text, path), path.replace("+", ""))


def _name_in(kind: Any, group: Mapping[str, Any], name: str, path: str) -> str:
    """The key that a name stands for in a group of some type. Raises: ConfigError if it must be there, or
    must not, and is not so."""
    if _mapping_entry(kind) is None or path in _NAMED_BY_THE_TASK:
        return name.removeprefix("+")
    adds, plain = name.startswith("+"), name.removeprefix("+")
    if adds and plain in group:
        raise ConfigError(f"{path}.{name}: {plain} is there already; leave out the + to change it")
    if not adds and plain not in group:
        raise ConfigError(
            f"{path}.{name}: there is no {name}; {instead(name, group, 'there are')} (to add {name}: "
            f"--config.{path}.+{name}=VALUE)"
        )
    return plain


def _put(group: dict[str, Any], name: str, kind: Any, value: Any, path: str) -> None:
    """Changes a key; of a group the keys that the value names. Unknown ones are left to `resolve`."""
    if not (dataclasses.is_dataclass(kind) and isinstance(value, Mapping)):
        group[name] = value
        return
    own, hints = _group_at(group, name, path), _hints(typing.cast(type, kind))
    for key, item in value.items():
        _put(own, key, hints.get(key), item, f"{path}.{key}")


def _group_at(config: dict[str, Any], name: str, path: str) -> dict[str, Any]:
    group = config.setdefault(name, {})
    if not isinstance(group, dict):
        raise ConfigError(f"{path}: there is a plain value at {name!r}, want a group of keys")
    return group


def said_of_levels(before: Config, after: Config) -> Iterator[str]:
    """What overrides did to the CMS levels beside changing them, and the defaults that a level takes
    because nothing names them; a line each."""
    old, new = (_levels(config) for config in (before, after))
    gone, added = [name for name in old if name not in new], [name for name in new if name not in old]
    for what, names in (("dropped", gone), ("added", added)):
        if names:
            yield f"cms.levels: {what} {', '.join(names)}"
    for name, level in new.items():
        given = {*level, "update_period", "lr"}
        defaults = [f"{f.name}={f.default}" for f in dataclasses.fields(Level) if f.name not in given]
        if defaults:
            yield f"cms.levels.{name}: not named, so by default {', '.join(defaults)}"


def _levels(config: Config) -> Mapping[str, Any]:
    return typing.cast(Mapping[str, Any], config.get("cms", {}).get("levels", {}))


def key_type(path: str) -> Any:
    """The type of the key at a dotted path. Raises: ConfigError naming the nearest known keys."""
    return list(_steps(path))[-1][-1]


def _steps(path: str) -> Iterator[tuple[Any, str, str, Any]]:
    """Down a dotted path: a group's type and path, a name in it, and that key's type. Raises: ConfigError."""
    kind, parent = typing.cast(Any, ExperimentConfig), ""
    for name in path.split("."):
        below = _mapping_entry(kind)
        if dataclasses.is_dataclass(kind):
            hints = _hints(typing.cast(type, kind))
            if name not in hints:
                raise ConfigError(_unknown(parent, name, hints))
            below = hints[name]
        elif below is None:
            raise ConfigError(f"{path}: {parent} has no keys of its own")
        elif not name.removeprefix("+").isidentifier():
            raise ConfigError(f"{parent}: {name!r} {_NO_NAME}")
        yield kind, parent.replace("+", ""), name, below
        kind, parent = below, _below(parent, name)


def _below(parent: str, name: str) -> str:
    return f"{parent}.{name}" if parent else name


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
    longer = [_below(parent, n) for n in known if n.endswith(f"_{name}")]
    paths = dict.fromkeys(
        part for path, *_ in key_paths() for part in itertools.accumulate(path.split("."), "{}.{}".format)
    )
    same = [path for path in paths if path.rsplit(".", 1)[-1] == name]
    moved = [path for path in paths if path.replace(".", "_") == name]
    near = [_below(parent, n) for n in difflib.get_close_matches(name, known, n=3)]
    guesses = (longer or same or moved or near)[:3]
    if guesses:
        return f"{_below(parent, name)}: unknown key; did you mean {' or '.join(guesses)}?"
    return f"{_below(parent, name)}: unknown key; known here: {', '.join(known)}"


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


def _group(kind: Any, values: Any, path: str, problems: list[str], default: Any) -> Any:
    """The dataclass `kind` with the given values, others as in `default` (None: as declared)."""
    hints, out = _hints(kind), {}
    for name, value in values.items():
        if name not in hints:
            problems.append(_unknown(path, str(name), hints))
        else:
            out[name] = _value(hints[name], value, _below(path, name), problems, getattr(default, name, None))
    if default is not None:
        return dataclasses.replace(default, **out)
    missing = [
        f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING
    ]
    lacking = [name for name in missing if name not in out]
    problems += [f"{path}.{name}: missing; every level names its {name}" for name in lacking]
    return None if lacking else kind(**out)


def _value(kind: Any, value: Any, path: str, problems: list[str], default: Any) -> Any:
    wanted, inner = describe(kind), _optional(kind)
    if inner is not None:
        if value is None:
            return None
        kind = inner
    entry = _mapping_entry(kind)
    if dataclasses.is_dataclass(kind) or entry is not None:
        if not isinstance(value, Mapping | ConfigDict):
            problems.append(f"{path or 'config'}: want a group of keys, got {value!r}")
            return default
        return (
            _mapping(entry, value, path, problems) if entry else _group(kind, value, path, problems, default)
        )
    base, bounds = typing.get_args(kind) if typing.get_origin(kind) is Annotated else (kind, None)
    if base is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    choices = typing.get_args(kind) if typing.get_origin(kind) is Literal else ()
    if choices:
        if value not in choices:
            near = difflib.get_close_matches(str(value), choices, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            problems.append(f"{path}: want {wanted}; got {value!r}{hint}")
    elif type(value) is not base or (
        not value.strip() if base is str else not (bounds or Range(-math.inf)).holds(value)
    ):
        problems.append(f"{path}: want {wanted}; got {value!r}")
    return value


def _mapping(entry: Any, value: Any, path: str, problems: list[str]) -> Mapping[str, Any]:
    out = {}
    for name, item in value.items():
        if not (isinstance(name, str) and name.isidentifier()):
            problems.append(f"{path}: {name!r} {_NO_NAME}")
        else:
            out[name] = _value(entry, item, f"{path}.{name}", problems, None)
    return FrozenMapping(out)


def parse(kind: Any, text: str, path: str) -> Any:
    """Command-line text as a value of the key's type; ranges and choices are left to `resolve`."""
    inner = _optional(kind)
    if inner is not None:
        return None if text.lower() == "none" else parse(inner, text, path)
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
