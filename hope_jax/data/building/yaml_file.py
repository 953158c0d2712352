"""A YAML file with variables of the environment in it.

Any text may hold `${NAME}` or `${NAME:-default}`. Where a value is nothing else, its default is read as YAML,
so that `limit: ${C4_LIMIT:-1000}` is a number, and what the environment holds is a number only if it is
written as a plain decimal one, else a text.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from hope_jax.core.errors import ConfigError
from hope_jax.data import text_files

_DECIMAL = re.compile(r"(?P<whole>0|[1-9][0-9]{0,17})(?P<fraction>\.[0-9]{1,17})?")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")

_YAML_ERRORS = (ValueError, TypeError, AttributeError, KeyError, RecursionError)
"""What PyYAML's own constructors raise at values that are not of their tag, such as the date 2020-13-45."""


def read_yaml(path: Path, variables: Mapping[str, str]) -> Any:
    """What the file holds, with its variables replaced. Raises: ConfigError: of the file or a variable."""
    try:
        text = text_files.decode(path.read_bytes())
        raw = yaml.load(text, _Loader)  # a safe loader, with one more check
    except OSError as error:
        raise ConfigError(f"--manifest={path}: {error.strerror or error}") from None
    except text_files.NotUtf8Error as error:
        raise ConfigError(f"--manifest={path} {error}; convert it, for example with iconv") from None
    except (yaml.YAMLError, *_YAML_ERRORS) as error:
        raise ConfigError(f"--manifest={path}: not YAML: {' '.join(str(error).split())}") from None
    try:
        return _expand(raw, variables, str(path))
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
    if isinstance(value, str) and "\0" in value:
        raise ConfigError(f"{where}={value!r}: a NUL can be in no path and no name; take it out")
    if not isinstance(value, str) or "${" not in value:
        return value

    def look_up(match: re.Match[str]) -> str:
        found = variables.get(match[1]) or match[2]
        if found is None:
            raise ConfigError(f"{where}: the variable {match[1]} is not set; set it, or write a default as "
                              f"${{{match[1]}:-DEFAULT}}")  # fmt: skip
        return found

    text = _VARIABLE.sub(look_up, value)
    whole = _VARIABLE.fullmatch(value)
    if whole is None:
        return text
    if variables.get(whole[1]):
        decimal = _DECIMAL.fullmatch(text)
        return text if decimal is None else float(text) if decimal["fraction"] else int(text)
    try:
        scalar = yaml.safe_load(text)
    except (yaml.YAMLError, *_YAML_ERRORS):
        return text
    return text if isinstance(scalar, (dict, list)) else scalar
