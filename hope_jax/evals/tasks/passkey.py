"""Passkey: a key in filler text, asked for at the end (docs/evals/long_context.md)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hope_jax.core.errors import ConfigError
from hope_jax.data.tokenizer import Tokenizer
from hope_jax.evals.suite.run import Journal, Run, evaluation, whole_number, whole_numbers
from hope_jax.evals.tasks.curves import length_figures
from hope_jax.evals.tasks.retrieval import Draft, check_lengths, measure

NAME = "passkey"
PROMPTS = 64
LENGTHS = (2048,)
ANSWER_TOKENS = 24

_FILLER = "Line {number} of this text holds nothing that matters."
_KEY = "The pass key of this text is {key}. You will be asked for it."
_QUESTION = "\nWhat is the pass key of this text? The pass key of this text is"


def _asked(run: Run) -> tuple[dict[str, Any], Sequence[Sequence[Draft]]]:
    """The settings, and the prompts of each length."""
    prompts = whole_number(run.options, "passkey_prompts", PROMPTS)
    lengths = whole_numbers(run.options, "passkey_lengths", LENGTHS)
    room = whole_number(run.options, "passkey_answer_tokens", ANSWER_TOKENS)
    depth = run.options.get("passkey_depth", 1.0)
    if isinstance(depth, bool) or not isinstance(depth, int | float) or not 0 <= depth <= 1:
        raise ConfigError(f"passkey_depth={depth!r}: want a number from 0 to 1")
    tokenizer, count = run.subject.trained.tokenizer, min(prompts, run.limit or prompts)
    groups = [[_Draft(tokenizer, run.seed, n, i, depth) for i in range(count)] for n in lengths]
    check_lengths(NAME, groups, room)
    settings = {"prompts": prompts, "lengths": list(lengths), "depth": float(depth), "answer_tokens": room}
    return settings, groups


@evaluation(NAME, _asked, length_figures)
def evaluate(
    run: Run, journal: Journal, settings: dict[str, Any], groups: Sequence[Sequence[Draft]]
) -> dict[str, Any]:
    """Metrics "passkey@length/field/arm" with the fields of `retrieval.FIELDS`."""
    notes = ["Made-up data: random keys in filler lines, in words of ours and not of the published runs."]
    return measure(run, journal, groups, settings["answer_tokens"]) | {"notes": notes}


class _Draft(Draft):
    """A prompt; its number of lines and its distractor depend on the tokenizer too. depth: share of the
    filler before the key."""

    before, after = "", _QUESTION

    def __init__(self, tokenizer: Tokenizer, seed: int, length: int, index: int, depth: float) -> None:
        super().__init__(tokenizer, seed, NAME, length, index)
        rng = self.generator("")
        self.depth, self.answers = depth, (self.value(rng),)
        self.needles = [_KEY.format(key=self.answers[0])]
        self.first = int(rng.integers(1, 1000))

    def value(self, rng: np.random.Generator) -> str:
        return str(rng.integers(10**4, 10**5))

    def context(self, units: int) -> str:
        """Lines are counted from a number of the prompt's own, and with fewer digits than keys have as long
        as there are fewer than 9,000: no line names a key."""
        filler = [_FILLER.format(number=self.first + i) for i in range(units)]
        filler.insert(round(self.depth * units), self.needles[0])
        return " ".join(filler)
