"""What lm-eval's `generation_kwargs` ask of an answer, read as lm-eval's own models read them.

Each setting is honoured, or refused with an error that names it: an answer under other settings than those
asked for would be a figure of another task. docs/evals/zeroshot.md lists them.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

from hope_jax.core.errors import ConfigError

MAX_GEN_TOKS = 256
"""Tokens of an answer where the task names no number, as in lm-eval's own models."""

_COUNTS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of the tokens at most; the first that has a value counts."""

_OF_DRAWS = ("top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "seed")
"""What shapes draws changes no greedy answer."""

_WITHOUT_EFFECT: Mapping[str, float] = {
    "num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1, "length_penalty": 1,
    "presence_penalty": 0, "frequency_penalty": 0, "no_repeat_ngram_size": 0, "min_new_tokens": 0,
    "min_tokens": 0, "min_length": 0,
}  # fmt: skip
"""Values that leave a greedy answer as it is; any other one is refused."""

_KNOWN = ("until", "do_sample", "temperature", *_COUNTS)


class Wanted(NamedTuple):
    """until: texts that end an answer. tokens: of it at most."""

    until: tuple[str, ...]
    tokens: int


def wanted(settings: Mapping[str, Any] | None) -> Wanted:
    """What the settings of a request ask for; one that is None is as if it were not there.

    Raises:
      ConfigError: they ask for what a greedy answer is not, or a value is none.
    """
    given = {key: value for key, value in (settings or {}).items() if value is not None}
    _check_greedy(given)
    for key, value in given.items():
        if key in _WITHOUT_EFFECT:
            if _number(key, value) != _WITHOUT_EFFECT[key]:
                _refuse(key, value, f"that is not done here; want {key}={_WITHOUT_EFFECT[key]:g}, or none")
        elif key not in (*_KNOWN, *_OF_DRAWS):
            remedy = {"stop": "give until", "max_length": "give max_gen_toks"}.get(key, "leave it out")
            _refuse(key, value, f"no such setting is known here; {remedy}")
    return Wanted(_until(given.get("until")), _tokens(given))


def _check_greedy(given: Mapping[str, Any]) -> None:
    sample, heat = given.get("do_sample"), given.get("temperature")
    if isinstance(sample, str) and sample.lower() in ("true", "false"):
        sample = sample.lower() == "true"
    if sample not in (None, True, False):
        _refuse("do_sample", sample, "want true or false")
    degrees = None if heat is None else _number("temperature", heat)
    if degrees is not None and degrees < 0:
        _refuse("temperature", heat, "want a number of at least 0")
    if sample is None and degrees:
        _refuse("temperature", heat, "answers are greedy; want temperature=0, or do_sample=false beside it")
    # As in lm-eval's own models do_sample=false overrules a temperature, and a temperature of 0 is greedy.
    if sample and degrees != 0:
        beside = "" if heat is None else f" beside temperature={heat!r}"
        _refuse("do_sample", f"true{beside}", "answers are greedy; want do_sample=false")


def _until(given: Any) -> tuple[str, ...]:
    ends = (given,) if isinstance(given, str) else () if given is None else given
    if not isinstance(ends, list | tuple) or not all(isinstance(end, str) for end in ends):
        _refuse("until", given, "want a text, or a list of texts")
    return tuple(end for end in ends if end)


def _tokens(given: Mapping[str, Any]) -> int:
    key = next((key for key in _COUNTS if key in given), None)
    if key is None:
        return MAX_GEN_TOKS
    count = _number(key, given[key])
    if count < 1 or count != int(count):
        _refuse(key, given[key], "want a whole number of tokens, at least 1")
    return int(count)


def _number(key: str, value: Any) -> float:
    """A finite number, or the text of one, as YAML and command lines leave them."""
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        _refuse(key, value, "want a number")
    return found


def _refuse(key: str, value: Any, why: str) -> NoReturn:
    raise ConfigError(f"generation_kwargs: {key}={value}: {why}")
