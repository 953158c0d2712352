"""Writes docs/config.md: keys, types and defaults, the comments of the fields, and who sets them.

python docs/make_config_reference.py
"""

import ast
import dataclasses
import functools
import inspect
import io
import re
import runpy
import tokenize
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hope_jax.cli import read_config
from hope_jax.config import experiment as config
from hope_jax.config.values import describe, key_paths
from hope_jax.memory.levels import Level

ROOT = Path(__file__).parents[1]
UNSET: dict[str, tuple[str, str]] = runpy.run_path(str(Path(__file__).with_name("unset_keys.py")))["UNSET"]
SHOWN = 2
"""Files that a row names, of those that set its key."""

HEAD = """# Configuration keys

Made by `python docs/make_config_reference.py` from `hope_jax/config/experiment.py` and the options of each
room that it composes; do not edit.

A config file has a `get_config()` that starts from `hope_jax.config.experiment.base_config()` (or one of
`hope_jax.config.presets`), changes values and returns it. On the command line
`--config.KEY=VALUE` changes any key:

```
python -m hope_jax.launch --config=configs/pilot_smoke.py --config.train.steps=20 \\
    --config.memory.surprise_threshold=None --config.cms.levels.cms_slow.update_period=32
```

A `get_config` with parameters takes their values behind the file's name, as in
`--config=configs/sweeps/mid_stage2_teach.py:scale=0.2,clip=8,steps=80`.

Levels and weights of a mixture have names; an override changes those that the file has, and anything else is
explicit:

| override | effect |
|---|---|
| `--config.cms.levels.cms_slow.lr=0.1` | changes a key of a level; an unknown level is an error |
| `--config.cms.levels.cms_slow="{'lr': 0.1, 'beta': 0.0}"` | several keys; the others stay |
| `--config.cms.levels.+ultra="{'update_period': 256, 'lr': 0.03}"` | adds one, the last of the chain |
| `--config.cms.levels.cms_mid=None` | drops a level |
| `--config.cms.levels="{'a': {'update_period': 8, 'lr': 0.1}}"` | replaces them all |
| `--config.data.mixture.code=0.2`, `.+code=0.2`, `.code=None` | changes, adds, drops a weight |
| `--config.data.mixture="{'wiki': 0.8, 'code': 0.2}"`, `={}` | replaces all weights, leaves none |

Levels that are dropped or added, and the defaults of keys that a level does not name, are logged
(`cms.levels.a: not named, so by default optimizer=momentum, ...`); every level names its period and its
rate. In a config file
`config.cms.levels = {...}` replaces the levels, `config.cms.levels.NAME = level(...)` adds one,
and `update({'NAME': {...}})` changes one that is there. Keys that are true or false may stand alone
(`--config.train.profile`, `--noconfig.log.tensorboard`).

What does not fit is refused before anything compiles, with exit code 2: unknown keys (with the nearest known
one), wrong types, numbers out of range, and combinations that cannot run. These are heads that do not divide
the width, or heads of odd width under RoPE; a period, or a chunk of the self-modifying memories, that neither
divides the online chunk nor is a multiple of it; an online chunk longer than the sequence; a
`truncate_tokens` that is no multiple of it; nested CMS levels whose periods are not multiples of each other;
a persistent memory outside `two_pass` with `scope=batch`; memories that start afresh at each document under
`scope=batch`, or in rows that are no whole number of online chunks; weights of a mixture that do not sum to
1; a batch that the devices do not divide; and schedules longer than the run.

The last column has the files below `configs/` that give a key another value than its default; or, where none
does, what the key is for and the test that turns it on (`docs/unset_keys.py`).
"""


def shipped() -> Iterator[tuple[str, Path]]:
    """(file below configs/, what --config takes) of every command that a shipped file names."""
    for path in sorted((ROOT / "configs").rglob("*.py"), key=lambda path: (len(path.parts), path)):
        name = path.relative_to(ROOT / "configs").with_suffix("").as_posix()
        given = dict.fromkeys(re.findall(rf"--config=configs/{name}(\.py(?::[\w=.,]*\w)?)", path.read_text()))
        yield from ((name, path.with_suffix("").with_name(path.stem + values)) for values in given)


def values_of(experiment: config.ExperimentConfig, key: str) -> list[Any]:
    """Of a key; of one under NAME, those of all levels."""
    found: list[Any] = [experiment]
    for part in key.split("."):
        found = [
            each for group in found for each in (group.values() if part == "NAME" else [getattr(group, part)])
        ]
    return found


@functools.cache
def users() -> dict[str, list[str]]:
    """Of each key the shipped files, by name, that give it another value than its default."""
    runs, base = [(name, read_config(path)) for name, path in shipped()], config.ExperimentConfig()
    out = {}
    for key, *_ in key_paths():
        default = values_of(base, key)[0]
        setting = (name for name, run in runs if any(value != default for value in values_of(run, key)))
        out[key] = list(dict.fromkeys(setting))
    return out


def comment_of(owner: type, key: str) -> str:
    """The comment at the end of a field's first line, in the class that declares it."""
    declared = next(group for group in owner.__mro__ if key in group.__dict__.get("__annotations__", {}))
    source = inspect.getsource(declared)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    by_line = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    fields = (item for item in ast.parse(source).body[0].body if isinstance(item, ast.AnnAssign))  # type: ignore[attr-defined]
    return next(by_line.get(item.lineno, "") for item in fields if item.target.id == key)  # type: ignore[union-attr]


def owners() -> Iterator[tuple[str, type, Any]]:
    """(dotted key, its dataclass, default) in the order of the schema; levels under NAME."""
    yield from _owners(config.ExperimentConfig(), "")


def _owners(group: Any, prefix: str) -> Iterator[tuple[str, type, Any]]:
    nested = []
    for f in dataclasses.fields(group):
        value = getattr(group, f.name)
        if dataclasses.is_dataclass(value):
            nested.append((value, f"{prefix}{f.name}."))
            continue
        yield prefix + f.name, type(group), value
        if isinstance(value, Mapping) and value:
            nested.append((Level(16, 1e-3), f"{prefix}{f.name}.NAME."))
    for value, path in nested:
        yield from _owners(value, path)


def _default(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} ({level.update_period})" for name, level in value.items()) or "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _set_by(key: str) -> str:
    files = users()[key]
    if not files:
        why, test = UNSET[key]
        return f"none: {why} (`{test}`)"
    more = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
    return ", ".join(f"`{name}`" for name in files[:SHOWN]) + more


def render() -> str:
    """The whole page."""
    kinds = {path: describe(kind) for path, kind, _ in key_paths()}
    lines, section = [HEAD], ""
    for path, owner, default in owners():
        group, key = path.rsplit(".", 1)
        if group != section:
            section = group
            lines += [f"\n## {group}\n{inspect.getdoc(owner)}\n"]
            lines += ["| key | takes | default | meaning | set by |", "|---|---|---|---|---|"]
        meaning = comment_of(owner, key).replace("|", r"\|")
        lines.append(f"| `{key}` | {kinds[path]} | {_default(default)} | {meaning} | {_set_by(path)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("config.md").write_text(render(), encoding="utf-8")
