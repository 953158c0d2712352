"""Evaluate checkpoints: every evaluation, its JSON, and a report.

python -m hope_jax.evals.suite --checkpoint=PATH[,PATH...] --out=FOLDER [--baseline=PATH] [--only=a,b]
    [--all_checkpoints] [--limit=N] [--seed=S] [--batch_size=B] [--records]
    [--memorize [--memorize_steps=N] [--memorize_carry] [--memorize_paths=titan,cms_fast]
     [--memorize_layers=0,1] [--memorize_surprise_threshold=X] [--memorize_correct_answer]]
    and the evaluations' own options

PATH is a workdir (its newest checkpoint), one checkpoints/<step>, or a release bundle; each is verified
first. FOLDER gets a JSON of each evaluation, report.html and report.md with plots; of several checkpoints a
folder each, and an index. With --baseline the same is done with it, and paired tests go to comparison.json.
The same command goes on after a kill. An evaluation that fails stops no other; the exit code is then 1.
docs/evals/README.md says more.
"""

import contextlib
import json
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags

from hope_jax import cli, compilation_cache
from hope_jax.core.errors import ConfigError
from hope_jax.core.output import say
from hope_jax.core.paths import make_room, split_paths

if TYPE_CHECKING:
    from hope_jax.evals.suite.session import Plan

_CHECKPOINT = cli.define_checkpoint()
_OUT = cli.define_path("out", "Folder of the results.")
_BASELINE = cli.define_paths("baseline", "Checkpoint to compare with.")
_ALL = flags.DEFINE_boolean("all_checkpoints", False, "All checkpoints of a workdir, not its newest.")
_ONLY = flags.DEFINE_list("only", [], "Names of evaluations; default: all that have what they need.")
_LIMIT = flags.DEFINE_integer("limit", None, "Items of each task at most.", lower_bound=1)
_SEED = flags.DEFINE_integer(
    "seed", 0, "Of items and draws.", lower_bound=0, upper_bound=2**32 - 1, allow_override=True
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Contexts side by side.", lower_bound=1)
_RECORDS = flags.DEFINE_boolean("records", False, "Keep a record of each item in the JSON.")

_MEMORIZE = flags.DEFINE_boolean("memorize", False, "Compare with memorization, and with a control.")
_STEPS = flags.DEFINE_integer("memorize_steps", 1, "Times that a text is memorized.", lower_bound=1)
_CARRY = flags.DEFINE_boolean(
    "memorize_carry", False, "Memories go on from item to item; else each is reset."
)
_PATHS = flags.DEFINE_list("memorize_paths", [], "Memories or CMS levels that are written; default: all.")
_LAYERS = flags.DEFINE_list("memorize_layers", [], "Layers that are written, from 0; default: all.")
_THRESHOLD = flags.DEFINE_float(
    "memorize_surprise_threshold", None, "Below this surprise nothing is written; default: the model's own."
)
_ANSWER = flags.DEFINE_boolean(
    "memorize_correct_answer", False, "Memorize the right answer too: a leak, marked wherever it counts."
)


def _there(text: str) -> str:
    """A path that exists."""
    if not Path(text).exists():
        raise ValueError(f"no such file or folder: {text}")
    return text


class _Option(NamedTuple):
    """A flag that sets options of evaluations. kind: of its value; several: values separated by commas."""

    text: str
    kind: Callable[[str], Any] = str
    several: bool = False


_OPTIONS = {
    "lengths": _Option("Tokens of needle and passkey contexts, as 2048,4096.", int, several=True),
    "niah_tasks": _Option("Names of needle tasks; default: all.", several=True),
    "documents": _Option(
        "Text file or folder of .txt files for perplexity; default: held-out texts of the corpus.", _there
    ),
    "zeroshot_data": _Option("Folder of the zero-shot tasks' data.", _there),
    "zeroshot_tasks": _Option("Names of zero-shot tasks; default: all whose data are there.", several=True),
    "zeroshot_max_length": _Option("Longest request in tokens.", int),
    "segments": _Option(
        "Folder of .txt files, one a segment; default: held-out texts of the corpus.", _there
    ),
    "intents": _Option("Folder of classification data for class_incremental.", _there),
}
_KEYS = {name: (name,) for name in _OPTIONS} | {
    "lengths": ("niah_lengths", "passkey_lengths"),
    "documents": ("perplexity_text",),
}
"""The options that each flag sets."""

for _name, _how in _OPTIONS.items():
    if _how.kind is _there:
        cli.define_path(_name, _how.text)
    else:
        flags.DEFINE_string(_name, None, _how.text, allow_override=True)

_MORE = flags.DEFINE_multi_string("option", [], "KEY=VALUE: any option of an evaluation, VALUE as in JSON.")

logger = logging.getLogger("hope_jax.evals")


def main(argv: list[str]) -> int:
    """Checks the flags, evaluates, and prints where the reports are."""
    if argv:
        raise ConfigError(f"unexpected argument {argv[0]!r}; every option is a flag (--help)")
    if not _CHECKPOINT.value or not _OUT.value:
        missing = "--out" if _CHECKPOINT.value else "--checkpoint"
        raise ConfigError(f"{missing} is missing; want --checkpoint=WORKDIR --out=FOLDER")
    if len(_BASELINE.value) > 1:
        raise ConfigError(f"--baseline: want one baseline, got {', '.join(_BASELINE.value)}")
    for names in (_ONLY, _PATHS, _LAYERS):
        if names.present and not all(name.strip() for name in names.value or [""]):
            raise ConfigError(
                f"--{names.name}={','.join(names.value)}: a name is empty; leave the flag out for all"
            )
    _check_memorize()
    with contextlib.suppress(OSError):  # which the plan's check tells
        make_room(Path(str(_OUT.value)))
    compilation_cache.use()
    from hope_jax.evals.suite import session  # takes seconds to import

    plan = _plan()
    done = session.run(plan)
    failed = [f"{found.target.name}: {name}" for found in done for name in found.failed]
    if failed:
        logger.error("error: %d evaluations failed (%s); the report says why", len(failed), ", ".join(failed))
    read = session.options_read(done)
    for key in plan.options if not failed else ():  # what those would have read is not known
        # Of a flag one of its options is enough.
        of_flag = {other for keys in _KEYS.values() if key in keys for other in keys}
        if not read & {key, *of_flag}:
            logger.warning("warning: no evaluation has read the option %s", key)
    say(plan.out / "report.html")
    return 1 if failed else 0


def _check_memorize() -> None:
    """Raises: ConfigError for a rule of memorization without memorization, or one that cannot be."""
    threshold = _THRESHOLD.value
    if threshold is not None and not (math.isfinite(threshold) and threshold >= 0):
        raise ConfigError(f"--memorize_surprise_threshold={threshold}: want a number of at least 0")
    for flag in (_STEPS, _CARRY, _PATHS, _LAYERS, _THRESHOLD, _ANSWER):
        if flag.present and not _MEMORIZE.value:
            raise ConfigError(f"--{flag.name} changes nothing without --memorize; give both, or neither")


def _plan() -> "Plan":
    from hope_jax.evals.reading.memorize import Rule
    from hope_jax.evals.suite import registry
    from hope_jax.evals.suite.run import ARMS, BASELINE
    from hope_jax.evals.suite.session import Plan

    options: dict[str, Any] = {}
    for name, option in _OPTIONS.items():
        text = flags.FLAGS[name].value
        if text is not None:
            if not text.strip():
                raise ConfigError(f"--{name}={text}: the value is empty; leave the flag out, or give one")
            found = _values(name, text.split(",") if option.several else [text], option.kind)
            options |= dict.fromkeys(_KEYS[name], found if option.several else found[0])
    more = dict(_more(text) for text in _MORE.value)
    registry.check_options(more)
    options |= more
    layers = tuple(_values("memorize_layers", _LAYERS.value, int))
    rule = Rule(_STEPS.value, _CARRY.value, tuple(_PATHS.value), layers, _THRESHOLD.value, _ANSWER.value)
    return Plan(
        checkpoints=tuple(split_paths("--checkpoint", str(_CHECKPOINT.value))),
        out=Path(str(_OUT.value)),
        names=registry.selected(_ONLY.value, options),
        baseline=Path(_BASELINE.value[0]) if _BASELINE.value else None,
        all_checkpoints=_ALL.value,
        limit=_LIMIT.value,
        seed=_SEED.value,
        batch_size=_BATCH_SIZE.value,
        memorize=rule,
        arms=ARMS if _MEMORIZE.value else (BASELINE,),
        records=_RECORDS.value,
        options=options,
    )


def _more(text: str) -> tuple[str, Any]:
    """A key and its value: JSON, or else the text as it is. Raises: ConfigError."""
    key, found, value = text.partition("=")
    if not found or not key:
        raise ConfigError(f"--option={text}: want KEY=VALUE")
    parsed: Any = value
    with contextlib.suppress(ValueError):
        parsed = json.loads(value)
    if isinstance(parsed, str) and not parsed.strip():
        raise ConfigError(f"--option={text}: the value is empty; leave the option out, or give one")
    return key, parsed


def _values(name: str, texts: Sequence[str], kind: Callable[[str], Any]) -> list[Any]:
    """Raises: ConfigError for a text that is no such value."""
    try:
        return [kind(text.strip()) for text in texts]
    except ValueError as error:
        raise ConfigError(f"--{name}={','.join(texts)}: {error}") from None


if __name__ == "__main__":
    cli.run_command(main)
