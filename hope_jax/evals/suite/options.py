"""An evaluation's own options, checked before any work: whole numbers and names."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from hope_jax.core.errors import ConfigError, instead


def whole_number(options: Mapping[str, Any], key: str, default: int, least: int = 1) -> int:
    """The option `key`. Raises: ConfigError unless it is a whole number of at least `least`."""
    return _whole(key, options.get(key, default), least)


def whole_numbers(
    options: Mapping[str, Any], key: str, default: Sequence[int], least: int = 1
) -> tuple[int, ...]:
    """The option `key`: a list, ascending and without repeats. Raises: ConfigError, as `whole_number`."""
    given = _listed(key, options.get(key, default))
    return tuple(sorted({_whole(key, value, least) for value in given}))


def share(options: Mapping[str, Any], key: str, default: float) -> float:
    """The option `key`. Raises: ConfigError unless it is a number from 0 to 1."""
    value = options.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigError(f"{key}={value!r}: want a number from 0 to 1")
    return float(value)


def listed(options: Mapping[str, Any], key: str) -> tuple[str, ...] | None:
    """The option `key`: names, as a list or separated by commas; None without it. Raises: ConfigError."""
    given = options.get(key)
    if given is None:
        return None
    if isinstance(given, str):
        given = [name.strip() for name in given.split(",") if name.strip()]
    if not all(isinstance(name, str) for name in _listed(key, given)):
        raise ConfigError(f"{key}={given!r}: want names")
    return tuple(given)


def chosen(options: Mapping[str, Any], key: str, names: Collection[str]) -> tuple[str, ...]:
    """The option `key`: some of `names`, in their order; without it all. Raises: ConfigError for others."""
    given = listed(options, key) or tuple(names)
    for name in given:
        if name not in names:
            raise ConfigError(f"{key}: unknown name {name!r}; {instead(name, names, 'choose from')}")
    return tuple(name for name in names if name in given)


def _whole(key: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{key}={value!r}: want a whole number of at least {least}")
    return value


def _listed(key: str, value: Any) -> Sequence[Any]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise ConfigError(f"{key}={value!r}: want a list of at least one")
    return value
