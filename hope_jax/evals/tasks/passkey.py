"""Passkey: a key in filler text, asked for at the end (docs/evals/long_context.md).

As in the published runs the model chooses between the key and one distractor by likelihood, and the key
stands after all filler; passkey_depth=0 puts it before, 0.5 in the middle.

Options: passkey_prompts, passkey_lengths (tokens of BOS, prompt and answer), passkey_depth (0 to 1),
passkey_answer_tokens (drawn at most).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hope_jax.core.errors import ConfigError
from hope_jax.data.tokenizer import Tokenizer
from hope_jax.evals.suite import options
from hope_jax.evals.suite.run import Run
from hope_jax.evals.tasks import retrieval
from hope_jax.evals.tasks.long_context_figures import accuracy_over_length
from hope_jax.evals.tasks.prompts import Prompt, generator, most, rival
from hope_jax.evals.tasks.retrieval import Group

NAME = "passkey"
PROMPTS = 64
LENGTHS = (2048,)
ANSWER_TOKENS = 24

_FILLER = "Line {number} of this text holds nothing that matters."
_KEY = "The pass key of this text is {key}. You will be asked for it."
_QUESTION = "\nWhat is the pass key of this text? The pass key of this text is"


def evaluate(run: Run) -> dict[str, Any]:
    """The outcome: metrics "passkey@length/field/arm" with the fields of `retrieval.FIELDS`.

    Raises: ConfigError for unknown options, or a length too short, with the least that is enough.
    """
    settings, tokenizer = _asked(run), run.subject.trained.tokenizer
    depth, answer_tokens = settings["depth"], settings["answer_tokens"]
    count = min(settings["prompts"], run.limit or settings["prompts"])
    groups = [
        Group(NAME, length, partial(make_prompt, tokenizer, length, run.seed, depth, answer_tokens))
        for length in settings["lengths"]
    ]
    notes = ["Made-up data: random keys in filler lines, in words of ours and not of the published runs."]
    return retrieval.evaluate(run, NAME, settings, groups, count, answer_tokens, notes)


def check(run: Run) -> None:
    """Raises: ConfigError for options that cannot be."""
    _asked(run)


def _asked(run: Run) -> dict[str, Any]:
    """The settings."""
    prompts = options.whole_number(run.options, "passkey_prompts", PROMPTS)
    lengths = options.whole_numbers(run.options, "passkey_lengths", LENGTHS)
    answer_tokens = options.whole_number(run.options, "passkey_answer_tokens", ANSWER_TOKENS)
    depth = options.share(run.options, "passkey_depth", 1.0)
    count = min(prompts, run.limit or prompts)
    tokenizer = run.subject.trained.tokenizer
    for length in lengths:
        least = max(_Draft(tokenizer, length, i, run.seed, depth).tokens(1) for i in range(count))
        if least + answer_tokens > length:
            raise ConfigError(
                f"passkey_lengths={length}: too short; want at least {least + answer_tokens} tokens, "
                f"of which {answer_tokens} are for the answer"
            )
    return {
        "prompts": prompts,
        "lengths": list(lengths),
        "depth": depth,
        "answer_tokens": answer_tokens,
    }


def make_prompt(
    tokenizer: Tokenizer, length: int, seed: int, depth: float, answer_tokens: int, index: int
) -> Prompt:
    """Prompt `index`: it depends on seed, length and index alone, its number of lines and its distractor on
    the tokenizer too; BOS, prompt and answer fill `length`.

    depth: share of the filler before the key. One line of filler must fit.
    """
    draft = _Draft(tokenizer, length, index, seed, depth)
    return draft.prompt(most(lambda lines: draft.tokens(lines) + answer_tokens <= length))


def figures(found: Mapping[str, Any]) -> dict[str, Figure]:
    """Choice and exact match over length, of an outcome."""
    return accuracy_over_length(NAME, found["metrics"])


class _Draft:
    """A key and numbers of lines, before it is known how many lines there will be."""

    def __init__(self, tokenizer: Tokenizer, length: int, index: int, seed: int, depth: float) -> None:
        self.tokenizer, self.depth = tokenizer, depth
        self.seed, self.name = seed, f"{NAME}/{length}/{index}"
        rng = generator(seed, self.name)
        self.key = _draw(rng)
        self.first = int(rng.integers(1, 1000))

    def tokens(self, lines: int) -> int:
        return 1 + len(self.tokenizer.encode(self._context(lines) + _QUESTION))

    def prompt(self, lines: int) -> Prompt:
        context, tokens = self._context(lines), self.tokens(lines)
        depths = (context.index(_KEY.format(key=self.key)) / len(context),)
        rng = generator(self.seed, f"{self.name}/distractor")
        other = rival(self.tokenizer, self.key, context, lambda: _draw(rng))
        return Prompt("", context, _QUESTION, (self.key,), other, depths, tokens)

    def _context(self, lines: int) -> str:
        """Lines are counted from a number of the prompt's own, and with fewer digits than keys have as long
        as there are fewer than 9,000: no line names a key."""
        filler = [_FILLER.format(number=self.first + i) for i in range(lines)]
        filler.insert(round(self.depth * lines), _KEY.format(key=self.key))
        return " ".join(filler)


def _draw(rng: np.random.Generator) -> str:
    return str(rng.integers(10**4, 10**5))
