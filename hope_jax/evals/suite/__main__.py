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
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


_LENGTHS = flags.DEFINE_list("lengths", None, "Tokens of needle and passkey contexts, as 2048,4096.")
_NIAH_TASKS = flags.DEFINE_list("niah_tasks", None, "Names of needle tasks; default: all.")
_DOCUMENTS = cli.define_path(
    "documents", "Text file or folder of .txt files for perplexity; default: held-out texts of the corpus."
)
_DATA = cli.define_path("zeroshot_data", "Folder of the zero-shot tasks' data.")
_TASKS = flags.DEFINE_list(
    "zeroshot_tasks", None, "Names of zero-shot tasks; default: all whose data are there."
)
_MAX_LENGTH = flags.DEFINE_integer("zeroshot_max_length", None, "Longest request in tokens.")
_SEGMENTS = cli.define_path(
    "segments", "Folder of .txt files, one a segment; default: held-out texts of the corpus."
)
_INTENTS = cli.define_path("intents", "Folder of classification data for class_incremental.")
_OF_LENGTHS = ("niah_lengths", "passkey_lengths")
_MORE = flags.DEFINE_multi_string("option", [], "KEY=VALUE: any option of an evaluation, VALUE as in JSON.")

logger = logging.getLogger("hope_jax.evals")


def main(argv: list[str]) -> int:
    """Checks the flags, evaluates, and prints where the reports are."""
    cli.refuse_arguments(argv)
    if not _CHECKPOINT.value or not _OUT.value:
        missing = "--out" if _CHECKPOINT.value else "--checkpoint"
        raise ConfigError(f"{missing} is missing; want --checkpoint=WORKDIR --out=FOLDER")
    if len(_BASELINE.value) > 1:
        raise ConfigError(f"--baseline: want one baseline, got {', '.join(_BASELINE.value)}")
    for names in (_ONLY, _PATHS, _LAYERS, _LENGTHS, _NIAH_TASKS, _TASKS):
        if names.present and not all(name.strip() for name in names.value or [""]):
            raise ConfigError(
                f"--{names.name}={','.join(names.value or [])}: a name is empty; leave the flag out for all"
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
        # Of what one flag sets one reader is enough.
        if not read & {key, *(_OF_LENGTHS if key in _OF_LENGTHS else ())}:
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

    options = _options()
    more = dict(_more(text) for text in _MORE.value)
    registry.check_options(more)
    options |= more
    layers = tuple(_whole_numbers(_LAYERS) or ())
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


def _options() -> dict[str, Any]:
    """The options that flags set. Raises: ConfigError for a path that is not there."""
    paths = _DOCUMENTS, _DATA, _SEGMENTS, _INTENTS
    for flag in paths:
        if flag.value is not None and not Path(flag.value).exists():
            raise ConfigError(f"--{flag.name}={flag.value}: no such file or folder: {flag.value}")
    values = dict.fromkeys(_OF_LENGTHS, _whole_numbers(_LENGTHS)) | {"perplexity_text": _DOCUMENTS.value}
    values |= {flag.name: flag.value for flag in (_NIAH_TASKS, _TASKS, _MAX_LENGTH, *paths[1:])}
    return {key: value for key, value in values.items() if value is not None}


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


def _whole_numbers(flag: flags.FlagHolder[list[str] | None]) -> list[int] | None:
    """Raises: ConfigError for a text that is none."""
    try:
        return None if flag.value is None else [int(text) for text in flag.value]
    except ValueError as error:
        raise ConfigError(f"--{flag.name}={','.join(flag.value or [])}: {error}") from None


if __name__ == "__main__":
    cli.run_command(main)
