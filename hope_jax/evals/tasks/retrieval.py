"""Questions on a context that holds the answer, for needles and passkeys alike: prompts as long as a length
allows, and how they are scored (docs/evals/long_context.md)."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from hope_jax.core.errors import ConfigError
from hope_jax.core.types import PyTree
from hope_jax.data.tokenizer import Tokenizer
from hope_jax.evals import statistics
from hope_jax.evals.reading.scoring import generate_after, read_prompts, score_after
from hope_jax.evals.reading.subject import Subject
from hope_jax.evals.suite.run import Journal, Run, progress
from hope_jax.evals.tasks.arms import Records, Tables, compare, run_arms, update_statistics

FIELDS = ("choice", "match", "nll", "margin", "removed_choice", "removed_nll", "removed_margin")
_CHANCES = {field: {"choice": 0.5, "margin": 0.0}.get(field.removeprefix("removed_")) for field in FIELDS}
_TOKENS = 2**17
"""Tokens that a batch of prompts holds at most: attention caches take memory in proportion."""


class Prompt(NamedTuple):
    """What is asked: before + context + after, to which " " + answer is the beginning of a right reply.
    answers: the values asked for, in the order of the question. distractor: a value of the same kind and, as
    far as can be, length in tokens, which stands nowhere in the prompt. depths: share of the context's
    characters before each needle's beginning, in the order of the text."""

    before: str
    context: str
    after: str
    answers: tuple[str, ...]
    distractor: str
    depths: tuple[float, ...]

    @property
    def text(self) -> str:
        """The whole prompt."""
        return self.before + self.context + self.after


class Draft:
    """All that is drawn for a sample, before it is known how many units its context has room for. Random
    numbers depend on seed, task, length in tokens and index alone, on every machine. A subclass sets
    `before`, `after`, `answers` and `needles` (the sentences that hold them), and has `context` and `value`.
    """

    before: str
    after: str
    answers: tuple[str, ...]
    needles: list[str]

    def __init__(self, tokenizer: Tokenizer, seed: int, task: str, length: int, index: int) -> None:
        self.tokenizer, self.task_name, self.length = tokenizer, task, length
        self.group, self._draws = f"{task}@{length}", f"{seed}/{task}/{length}/{index}"
        self.key = f"{self.group}/{index}"

    def generator(self, what: str) -> np.random.Generator:
        """Random numbers of this sample for a purpose."""
        digest = hashlib.sha256(f"{self._draws}{what}".encode()).digest()
        return np.random.default_rng(np.frombuffer(digest, np.dtype("<u4")))

    def context(self, units: int) -> str:
        """The needles within so many units of filler."""
        raise NotImplementedError

    def value(self, rng: np.random.Generator) -> str:
        """One that could be an answer."""
        raise NotImplementedError

    def tokens(self, units: int) -> int:
        """Of BOS and the prompt with a context of so many units."""
        return 1 + len(self.tokenizer.encode(self.before + self.context(units) + self.after))

    def prompt(self, room: int) -> Prompt:
        """The longest of at most `room` tokens; one unit has room."""
        context = self.context(most(lambda units: self.tokens(units) <= room))
        found = sorted(context.index(needle) for needle in self.needles)
        depths = tuple(at / len(context) for at in found)
        rival = self._rival(self.before + context + self.after)
        return Prompt(self.before, context, self.after, self.answers, rival, depths)

    def _rival(self, text: str) -> str:
        """A value that stands nowhere in `text`, of as many tokens after a space as the first answer has, so
        that a model's liking for short texts decides nothing; of 200 draws that all differ, the nearest. The
        number of draws depends on the tokenizer: they have a generator of their own."""
        rng, best, nearest = self.generator("/distractor"), "", float("inf")
        wanted = len(self.tokenizer.encode(" " + self.answers[0]))
        for _ in range(200):
            drawn = self.value(rng)
            while drawn in text:
                drawn = self.value(rng)
            if (apart := abs(len(self.tokenizer.encode(" " + drawn)) - wanted)) < nearest:
                best, nearest = drawn, apart
            if not apart:
                break
        return best


def most(fits: Callable[[int], bool]) -> int:
    """The most units that fit: by doubling, then binary search. One unit fits; more fit ever less."""
    low, high = 1, 2
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def check_lengths(name: str, groups: Sequence[Sequence[Draft]], room: int) -> None:
    """Raises ConfigError, which names the least length, if a sample has no room for one unit of context and
    `room` tokens of an answer. name: of the evaluation. groups: samples of one task and length each."""
    for drafts in groups:
        least, first = room + max(draft.tokens(1) for draft in drafts), drafts[0]
        if least > first.length:
            raise ConfigError(
                f"{name}_lengths={first.length}: too short for {first.task_name}: want at least {least} "
                f"tokens, of which {room} are for the answer"
            )


def measure(
    run: Run, journal: Journal, groups: Sequence[Sequence[Draft]], answer_tokens: int
) -> dict[str, Any]:
    """What an evaluation measures: the samples of each group, in each arm of `run`. answer_tokens: drawn at
    most. "updates" holds of each group, arm and level what memorization wrote on average."""
    metrics: dict[str, Any] = {}
    paired: dict[str, Any] = {}
    updates: dict[str, Any] = {}
    items: list[dict[str, Any]] = []
    for drafts in groups:
        group, records = drafts[0].group, _records(run, journal, drafts, answer_tokens)
        found, tests = summarize(records, group)
        metrics |= found
        paired |= tests
        updates[group] = update_statistics(records)
        items += [{"arm": arm, **item} for arm, of_arm in records.items() for item in of_arm]
        shown = (f"{arm} {metrics[f'{group}/choice/{arm}']['value']:.3f}" for arm in run.arms)
        progress("retrieval").info("%s: choice %s", group, ", ".join(shown))
    return {"metrics": metrics, "paired": paired, "items": items, "updates": updates}


def _records(run: Run, journal: Journal, drafts: Sequence[Draft], answer_tokens: int) -> Records:
    """Of each arm, see `answer`. What the arm `memorized` has read is the context, needles and all, and under
    `use_correct_answer` the whole prompt with its answers."""
    length, encode = drafts[0].length, run.subject.trained.tokenizer.encode
    run = replace(run, batch_size=max(1, min(run.batch_size, _TOKENS // length)))

    @lru_cache(maxsize=run.batch_size)
    def made(draft: Draft) -> Prompt:
        return draft.prompt(length - answer_tokens)

    def text(draft: Draft) -> np.ndarray:
        prompt = made(draft)
        whole = f"{prompt.text} {', '.join(prompt.answers)}"
        return encode(whole if run.memorize.use_correct_answer else prompt.context)

    def score(batch: Sequence[Draft], fast: PyTree | None) -> list[dict[str, Any]]:
        return answer(run.subject, [made(draft) for draft in batch], fast, answer_tokens)

    return run_arms(run, journal, drafts, text, score)


def answer(
    subject: Subject, prompts: Sequence[Prompt], fast: PyTree | None, answer_tokens: int
) -> list[dict[str, Any]]:
    """A record for each prompt, read with memories `fast` (of as many contexts, or None): its scores, as
    docs/evals/long_context.md lists them; `tokens` of the first answer; `text`, the greedy continuation of at
    most `answer_tokens` tokens."""
    tokenizer = subject.trained.tokenizer
    candidates = [
        [continuation(tokenizer, p.after, p.answers[0]) for p in prompts],
        [continuation(tokenizer, p.after, p.distractor) for p in prompts],
    ]
    rows = [tokenizer.encode(p.text) for p in prompts]
    without = [tokenizer.encode(p.before + p.after) for p in prompts]
    capacity = 1 + max(map(len, rows)) + max(answer_tokens, *(len(c) for row in candidates for c in row))
    read, bare = (read_prompts(subject, given, fast, capacity=capacity) for given in (rows, without))
    right, wrong, bare_right, bare_wrong = (
        score_after(subject, state, each) for state in (read, bare) for each in candidates
    )
    drawn = generate_after(subject, read, answer_tokens)

    def compared(prefix: str, prompt: Prompt, right: float, wrong: float) -> dict[str, Any]:
        found = {"choice": chosen(prompt, right, wrong), "margin": right - wrong, "nll": -right}
        return {prefix + name: value for name, value in found.items()}

    records = []
    for i, prompt in enumerate(prompts):
        written = tokenizer.decode(drawn[i])
        records.append(
            {
                **compared("", prompt, right[i].log_prob, wrong[i].log_prob),
                "tokens": right[i].tokens,
                "match": string_match(written, prompt.answers),
                "text": written,
                "answers": list(prompt.answers),
                "depths": list(prompt.depths),
                **compared("removed_", prompt, bare_right[i].log_prob, bare_wrong[i].log_prob),
            }
        )
    return records


def chosen(prompt: Prompt, right: float, wrong: float) -> bool:
    """Whether the first answer, of log-likelihood `right`, is chosen over the distractor, of `wrong`. Of
    equal ones that of the lesser SHA-256 is chosen, whichever is right: a model that cannot tell them apart
    is right in half of the samples, and in the same ones in every arm."""
    if right != wrong:
        return right > wrong
    answer, other = (hashlib.sha256(v.encode()).digest() for v in (prompt.answers[0], prompt.distractor))
    return answer < other


def continuation(tokenizer: Tokenizer, before: str, answer: str) -> np.ndarray:
    """The token ids with which " " + answer goes on after a text."""
    known, whole = tokenizer.encode(before), tokenizer.encode(f"{before} {answer}")
    if np.array_equal(whole[: len(known)], known):
        return whole[len(known) :]
    return tokenizer.encode(f" {answer}")


def string_match(text: str, answers: Sequence[str]) -> float:
    """RULER's `string_match_all` of one sample: share of the answers that stand in the text, in any case."""
    return sum(answer.lower() in text.lower() for answer in answers) / len(answers)


def summarize(records: Records, name: str) -> Tables:
    """Metrics and paired tests "name/field/arm" of `FIELDS`. With one answer a sample `match` is a hit
    or a miss; else it is a share of the answers. Both have Wilson's interval."""
    one = all(len(item["answers"]) == 1 for items in records.values() for item in items)
    shown = {
        arm: [{**item, "match": item["match"] == 1.0 if one else item["match"]} for item in items]
        for arm, items in records.items()
    }
    metrics, paired = compare(shown, name, _CHANCES)
    for arm, items in shown.items() if not one else ():
        metrics[f"{name}/match/{arm}"] = statistics.share([item["match"] for item in items]).as_json()
    return metrics, paired
