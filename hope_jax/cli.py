"""What all commands share: flags, a configuration from a file and overrides, errors as one paragraph.

absl defines and parses the flags. `--config.KEY=VALUE` is taken out first and typed by the schema: absl's
own config flag knows neither None nor a level that the file lacks, and reports errors as tracebacks.
"""

import contextlib
import inspect
import json
import logging
import re
import sys
import textwrap
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

from absl import flags

from hope_jax.config.experiment import ExperimentConfig
from hope_jax.config.values import (
    Config,
    as_plain_dict,
    key_type,
    parse,
    resolve,
    said_of_levels,
    set_override,
)
from hope_jax.core import output
from hope_jax.core.errors import ClosedOutput, ConfigError, NoRoomError, OutputError, UserError, lack_of_room
from hope_jax.core.paths import as_path

FLAGS = flags.FLAGS

logger = logging.getLogger("hope_jax.cli")

_CONFIG = "config"
_OVERRIDES = "config_override"
_OVERRIDE = re.compile(r"--?(no)?config\.([^=]+)(?:=(.*))?", re.DOTALL)
_HELP = {"--help", "-help", "-h", "-?", "--helpshort", "--helpfull"}

flags.DEFINE_boolean("debug", False, "Show the traceback of an error.")


class PathParser(flags.ArgumentParser[str]):
    """Of flags that name files or folders: an empty text is refused; a flag that is not given is None."""

    def parse(self, argument: str) -> str:
        """The path as it was given. Raises: ValueError, which absl tells with the flag's name."""
        try:
            as_path("path", argument)
        except ConfigError as error:
            raise ValueError(str(error).partition(": ")[2]) from None
        return argument


def define_path(name: str, help_text: str) -> flags.FlagHolder[str | None]:
    """Gives the command `--NAME=PATH`; several commands may be imported into one process."""
    return flags.DEFINE(PathParser(), name, None, help_text, allow_override=True)


def define_paths(name: str, help_text: str) -> flags.FlagHolder[list[str]]:
    """Gives the command `--NAME=PATH`, which may be given again."""
    serializer = flags.ArgumentSerializer[str]()
    return flags.DEFINE_multi(PathParser(), serializer, name, [], help_text, allow_override=True)


def define_config() -> None:
    """Gives the command `--config=FILE` and an override `--config.KEY=VALUE` for every key."""
    define_path(
        _CONFIG,
        "Python file with get_config(), FILE.py:NAME=VALUE,... if that takes values. --config.KEY=VALUE "
        "changes a key, for example "
        "--config.train.steps=20 or --config.cms.levels.cms_slow.update_period=64.",
    )
    flags.DEFINE_multi_string(_OVERRIDES, [], "What --config.KEY=VALUE is short for.", allow_override=True)


def define_checkpoint() -> flags.FlagHolder[str | None]:
    """Gives the command `--checkpoint=PATH`."""
    return define_path(
        "checkpoint", "Workdir (its newest checkpoint), one checkpoints/<step>, or release bundle."
    )


def refuse_arguments(argv: list[str], hint: str = "every option is a flag") -> None:
    """Of commands that take flags alone. Raises: ConfigError if anything else was given."""
    if argv:
        raise ConfigError(f"unexpected argument {argv[0]!r}; {hint} (--help)")


def output_file(flag: str, value: str | None) -> Path | None:
    """The file that a flag names, None without one. Raises: ConfigError if its folder is not there."""
    if not value:
        return None
    path = Path(value)
    if not path.parent.is_dir() or path.is_dir():
        raise ConfigError(f"--{flag}={value}: want a file in a folder that exists")
    return path


def write_files(flag: str, files: Mapping[Path, bytes]) -> None:
    """Writes files that belong together, which a flag names: first all under temporary names, then the last
    takes its place first, so that the first is there, or new, only if all are. Raises: OutputError."""
    from hope_jax.core.files import atomic_file

    try:
        with contextlib.ExitStack() as stack:
            for path, content in files.items():
                stack.enter_context(atomic_file(path)).write(content)
    except OSError as error:
        raise OutputError(
            f"--{flag}: {error.filename2 or error.filename or next(iter(files))} cannot be written "
            f"({error.strerror}); make room or give write permission, or choose another --{flag}"
        ) from None


def write_json(flag: str, path: Path, value: Any) -> None:
    """As `write_files`, one value as JSON."""
    write_files(flag, {path: (json.dumps(value, indent=1) + "\n").encode()})


def config_path() -> Path:
    """The file that `--config` names. Raises: ConfigError if it names none."""
    path = FLAGS[_CONFIG].value
    if not path:
        raise ConfigError(
            "--config is missing; want a config file, for example --config=configs/pilot_smoke.py"
        )
    return Path(str(path))


def config_name() -> str:
    """What a run of `--config` is called: the file's name, and the values given to it."""
    path, given = _file_and_values(config_path())
    return "-".join([path.stem, *(f"{name}={value}" for name, value in given.items())])


def _file_and_values(path: Path) -> tuple[Path, dict[str, str]]:
    """Of FILE.py:NAME=VALUE,...: the file, and what its `get_config` is called with."""
    name, colon, text = str(path).partition(".py:")
    if not colon:
        return path, {}
    pairs = [part.partition("=") for part in text.split(",")]
    given = {key: value for key, _, value in pairs}
    if len(given) < len(pairs) or not all(key.isidentifier() and value for key, value in given.items()):
        raise ConfigError(
            f"--config={path}: want FILE.py:NAME=VALUE,NAME=VALUE, each name once; got {text!r} behind it"
        )
    return Path(f"{name}.py"), given


def has_config() -> bool:
    """Whether `--config`, or an override of one of its keys, was given."""
    return bool(FLAGS[_CONFIG].value or FLAGS[_OVERRIDES].value)


def load_config(own: Config | None = None) -> ExperimentConfig:
    """The configuration of `--config`, or `own` without that flag, with overrides. Raises: ConfigError."""
    overrides = FLAGS[_OVERRIDES].value or ()
    if own is not None and not FLAGS[_CONFIG].value:
        return _overridden(own, overrides)
    return read_config(config_path(), overrides)


def read_config(path: Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Runs `get_config()` of a Python file, applies `KEY=VALUE` overrides in order, and resolves.

    Raises: ConfigError for a file that is missing or fails, and for unknown keys and values.
    """
    return _overridden(_run_config_file(*_file_and_values(path)), overrides)


def _overridden(config: Config, overrides: Sequence[str]) -> ExperimentConfig:
    values = as_plain_dict(config)
    for override in overrides:
        key, _, text = override.partition("=")
        set_override(values, key, text)
    resolved = resolve(values)
    for line in said_of_levels(config, values):
        logger.info("%s", line)
    return resolved


def _run_config_file(path: Path, given: Mapping[str, str]) -> Config:
    if not path.is_file():
        known = sorted(p.name for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        hint = f"; in that folder: {', '.join(known)}" if known else ""
        raise ConfigError(f"--config={path}: no such file{hint}")
    namespace = {"__name__": "config_file", "__file__": str(path)}
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), namespace)
        get_config = namespace.get("get_config")
        if not callable(get_config):
            raise ConfigError(f"--config={path}: the file has no function get_config()")
        config = get_config(**_typed(path, get_config, given))
    except UserError:
        raise
    except SyntaxError as error:
        raise ConfigError(f"--config={path}: line {error.lineno}: {error.msg}") from error
    except Exception as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        where = f"line {lines[-1]}: " if lines else ""
        raise ConfigError(f"--config={path}: {where}{type(error).__name__}: {error}") from error
    if not hasattr(config, "items"):
        raise ConfigError(f"--config={path}: get_config() returned {config!r}; want the ConfigDict it made")
    return cast(Config, config)


def _typed(path: Path, get_config: Callable[..., Any], given: Mapping[str, str]) -> dict[str, Any]:
    """The values for `get_config`, of its parameters' types. Raises: ConfigError."""
    parameters = inspect.signature(get_config, eval_str=True).parameters
    known = {
        name: one for name, one in parameters.items() if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    }
    for name in given:
        if name not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise ConfigError(f"--config={path}: get_config() has no value {name!r}; {takes}")
    lacking = [name for name, one in known.items() if one.default is one.empty and name not in given]
    if lacking:
        raise ConfigError(
            f"--config={path}: get_config() needs {', '.join(lacking)}; add :{lacking[0]}=VALUE"
        )
    kinds = {name: str if one.annotation is one.empty else one.annotation for name, one in known.items()}
    return {name: parse(kinds[name], text, f"--config={path}: {name}") for name, text in given.items()}


def split_overrides(argv: Sequence[str]) -> list[str]:
    """argv with each `--config.KEY=VALUE` written as `--config_override=KEY=VALUE`.

    A flag without value is true (`--config.train.profile`), with `no` before it false, if the key takes
    true or false; else the next argument is its value, as absl does.

    Raises: ConfigError for an unknown key or a value that is missing.
    """
    out: list[str] = []
    rest = iter(argv)
    for token in rest:
        if token == "--":
            return [*out, token, *rest]
        match = _OVERRIDE.fullmatch(token)
        if match is None:
            out.append(token)
            continue
        negated, key, value = match.groups()
        switch = key_type(key) is bool
        if negated and not (switch and value is None):
            raise ConfigError(f"{token}: the form --noconfig.KEY is for keys that are true or false")
        if value is None:
            value = str(not negated).lower() if switch else next(rest, None)
        if value is None:
            raise ConfigError(f"{token}: the value is missing; write {token}=VALUE")
        out.append(f"--{_OVERRIDES}={key}={value}")
    return out


def run_command(
    main: Callable[[list[str]], int | None],
    argv: Sequence[str] | None = None,
    leave: Callable[[int], NoReturn] = sys.exit,
) -> NoReturn:
    """Parses flags, runs `main(remaining arguments)`, and exits with its code, or 0 for None.

    An error becomes one paragraph on stderr and an exit code (a UserError's own, 2 for a wrong flag, 1
    for anything else); its traceback is shown under `--debug`. An output that nobody reads any more ends the
    command without a word, with 141. `--help` exits with 0. After an error `leave` ends the process.
    """
    arguments = list(sys.argv if argv is None else argv)

    def end(error: Exception, message: str, code: int) -> NoReturn:
        if "--debug" in arguments:
            output.complain("".join(traceback.format_exception(error)).rstrip())
        output.complain(f"error: {message}")
        leave(code)

    output.prepare()
    _log_to_stderr()
    try:
        code: int | None = 0
        if _HELP.intersection(arguments[1:]):
            output.say(_help(main))
        else:
            given = split_overrides(arguments) if _OVERRIDES in FLAGS else arguments
            code = main(FLAGS(given)[1:])
        output.finish()
        sys.exit(code or 0)
    except ClosedOutput as error:
        leave(error.exit_code)
    except UserError as error:
        end(error, str(error), error.exit_code)
    except flags.Error as error:
        end(error, f"{error} (--help lists the flags)", ConfigError.exit_code)
    except KeyboardInterrupt:
        leave(130)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        told = f"{type(error).__name__} at {where}: {error} (--debug shows the traceback)"
        if lack := lack_of_room(error):
            told = f"{lack}; give it fewer or shorter texts at once, or a smaller model"
        end(error, told, NoRoomError.exit_code)


def _log_to_stderr() -> None:
    """Progress of this package as it is; of other packages only what they warn of."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    ours, handler = logging.getLogger("hope_jax"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    ours.handlers, ours.propagate = [handler], False
    ours.setLevel(logging.INFO)


def _help(main: Callable[[list[str]], int | None]) -> str:
    """The module's docstring, and the flags that are no library's."""
    modules = {name: FLAGS.find_module_defining_flag(name) or "" for name in FLAGS if name != _OVERRIDES}
    shown = [FLAGS[name] for name, module in modules.items() if not module.startswith(("absl", "orbax"))]
    width = max(len(flag.name) for flag in shown)
    lines = [
        textwrap.fill(f"--{f.name:<{width}}  {f.help}", 100, subsequent_indent=" " * (width + 4))
        for f in shown
    ]
    return "\n".join([(sys.modules[main.__module__].__doc__ or "").strip(), "", *lines])
