"""Prompts of the needle-in-a-haystack tasks, after RULER's recipe (arXiv 2404.06654), in other haystacks.

A needle is a sentence that gives a key its value; the question asks for the values of one key or of several.
Sample i of a task depends on the seed, the task, the length and i alone; only the size of its haystack and
its distractor depend on the tokenizer too. A haystack is as long as the length allows: BOS, prompt and the
room for an answer are at most `length` tokens, by binary search over its units (words of prose, lines of
noise, or lines of other needles).

What differs from RULER: the prose (ours starts at another sentence for each sample, and wraps around), the
words of keys, the sentence splitter, and random draws; so results are "RULER-style, other haystack".
"""

import uuid
from typing import Literal, NamedTuple

import numpy as np

from hope_jax.core.errors import ConfigError
from hope_jax.data.tokenizer import Tokenizer
from hope_jax.evals.tasks.niah_words import ADJECTIVES, NOUNS
from hope_jax.evals.tasks.prompts import Prompt, distinct, generator, most, rival
from hope_jax.evals.tasks.prose import Prose, split_sentences

LABEL = "RULER-style, other haystack"
ANSWER_TOKENS = 128
"""Room for the answer in tokens, as in RULER."""

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
_NEEDLE = "One of the special magic {kind} for {key} is: {value}."
_MANY = (
    "Some special magic {kind} are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n",
    "\nWhat are all the special magic {kind} for {query} mentioned in the provided text?"
    " The special magic {kind} for {query} mentioned in the provided text are",
)
_ONE = (
    "A special magic {kind} is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n",
    "\nWhat is the special magic {kind} for {query} mentioned in the provided text?"
    " The special magic {kind} for {query} mentioned in the provided text is",
)
_DEPTHS = np.round(np.linspace(0, 100, 40)).astype(int)


class Task(NamedTuple):
    """haystack: what surrounds the needles. key, value: their kinds. keys: needles with keys of their own.
    values: needles of each key. asked: keys that the question names."""

    haystack: Literal["noise", "prose", "needles"]
    key: Literal["word", "uuid"]
    value: Literal["number", "uuid"]
    keys: int
    values: int
    asked: int

    @property
    def answers(self) -> int:
        """Values that are asked for."""
        return self.asked * self.values


TASKS = {
    "niah_single_1": Task("noise", "word", "number", 1, 1, 1),
    "niah_single_2": Task("prose", "word", "number", 1, 1, 1),
    "niah_single_3": Task("prose", "word", "uuid", 1, 1, 1),
    "niah_multikey_1": Task("prose", "word", "number", 4, 1, 1),
    "niah_multikey_2": Task("needles", "word", "number", 1, 1, 1),
    "niah_multikey_3": Task("needles", "uuid", "uuid", 1, 1, 1),
    "niah_multivalue": Task("prose", "word", "number", 1, 4, 1),
    "niah_multiquery": Task("prose", "word", "number", 4, 1, 4),
}


def make_prompt(
    tokenizer: Tokenizer,
    name: str,
    length: int,
    index: int,
    *,
    seed: int,
    prose: Prose,
    answer_tokens: int = ANSWER_TOKENS,
) -> Prompt:
    """Sample `index` of the task `name` for `length` tokens.

    Raises:
      ConfigError: the least haystack is too long; the message names the least length.
    """
    draft = _Draft(tokenizer, name, length, index, seed, prose)
    room = length - answer_tokens
    least = draft.tokens(1)
    if least > room:
        raise ConfigError(
            f"niah_lengths={length}: too short for {name} (sample {index}): want at least "
            f"{least + answer_tokens} tokens, {least} for needles, question and one unit of haystack, "
            f"and {answer_tokens} for the answer"
        )
    return draft.prompt(most(lambda units: draft.tokens(units) <= room))


def check_length(
    tokenizer: Tokenizer,
    name: str,
    length: int,
    count: int,
    *,
    seed: int,
    answer_tokens: int = ANSWER_TOKENS,
) -> None:
    """Raises ConfigError, which names the least number, if one of the first `count` samples has no room for
    its needles or its answers."""
    word = Prose(["Word."])
    drafts = [_Draft(tokenizer, name, length, i, seed, word) for i in range(count)]
    room = max(len(tokenizer.encode(" " + ", ".join(draft.answers))) for draft in drafts)
    if room > answer_tokens:
        raise ConfigError(
            f"niah_answer_tokens={answer_tokens}: too few for the answers of {name}: want at least {room}"
        )
    least = max(draft.tokens(1) for draft in drafts) + answer_tokens
    if least > length:
        raise ConfigError(
            f"niah_lengths={length}: too short for {name}: want at least {least} tokens, of which "
            f"{answer_tokens} are for the answer"
        )


class _Draft:
    """All that is drawn for a sample, before the size of its haystack is known."""

    def __init__(
        self, tokenizer: Tokenizer, name: str, length: int, index: int, seed: int, prose: Prose
    ) -> None:
        self.tokenizer, self.task, self.prose = tokenizer, TASKS[name], prose
        self.seed, self.name = seed, f"{name}/{length}/{index}"
        task, rng = self.task, generator(seed, self.name)
        keys = distinct(lambda: _draw(rng, task.key), task.keys)
        values = distinct(lambda: _draw(rng, task.value), task.keys * task.values)
        given = [values[i * task.values : (i + 1) * task.values] for i in range(task.keys)]
        self.needles = [self._needle(k, v) for k, of_key in zip(keys, given, strict=True) for v in of_key]
        rng.shuffle(self.needles)
        self.answers = tuple(v for of_key in given[: task.asked] for v in of_key)
        self.taken = {*keys, *values}
        self.start = float(rng.random())
        depths = rng.choice(_DEPTHS, len(self.needles), replace=False)
        self.depths = np.sort(depths) / 100 if task.haystack == "prose" else rng.random(len(self.needles))
        self.others = np.random.default_rng(rng.integers(2**63))
        self.lines: list[str] = []
        kind = task.value + ("s" if task.answers > 1 else "")
        before, after = _MANY if task.answers > 1 else _ONE
        self.before = before.format(kind=kind)
        self.after = after.format(kind=kind, query=listed(keys[: task.asked]))

    def tokens(self, units: int) -> int:
        """Of BOS and the prompt with a haystack of so many units."""
        return 1 + len(self.tokenizer.encode(self.before + self.context(units) + self.after))

    def prompt(self, units: int) -> Prompt:
        context = self.context(units)
        found = sorted(context.index(needle) for needle in self.needles)
        depths = tuple(at / len(context) for at in found)
        text = self.before + context + self.after
        rng = generator(self.seed, f"{self.name}/distractor")
        other = rival(self.tokenizer, self.answers[0], text, lambda: _draw(rng, self.task.value))
        return Prompt(self.before, context, self.after, self.answers, other, depths, self.tokens(units))

    def context(self, units: int) -> str:
        if self.task.haystack == "prose":
            pieces, joint = split_sentences(self.prose.words(self.start, units)), " "
        else:
            pieces, joint = [NOISE] * units if self.task.haystack == "noise" else self._other(units), "\n"
        places = sorted(int(depth * len(pieces)) for depth in self.depths)
        for place, needle in reversed(list(zip(places, self.needles, strict=True))):
            pieces.insert(place, needle)
        return joint.join(pieces)

    def _other(self, count: int) -> list[str]:
        """The first lines of an endless list of needles with other keys and values than this sample's."""
        while len(self.lines) < count:
            key, value = _draw(self.others, self.task.key), _draw(self.others, self.task.value)
            if not {key, value} & self.taken:
                self.lines.append(self._needle(key, value))
        return self.lines[:count]

    def _needle(self, key: str, value: str) -> str:
        return _NEEDLE.format(kind=f"{self.task.value}s", key=key, value=value)


def listed(names: list[str]) -> str:
    """Names in a sentence as RULER joins them: "a", "a, and b", "a, b, and c"."""
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + ", and " + names[-1]


def _draw(rng: np.random.Generator, kind: str) -> str:
    if kind == "number":
        return str(rng.integers(10**6, 10**7))
    if kind == "uuid":
        return str(uuid.UUID(bytes=rng.bytes(16), version=4))
    return f"{ADJECTIVES[rng.integers(len(ADJECTIVES))]}-{NOUNS[rng.integers(len(NOUNS))]}"
