"""Questions on a context that holds the answer: how they are scored, for needles and for passkeys alike.

Two measures share one reading of the prompt: the choice between the right answer and one distractor by
likelihood (chance 0.5), and the share of right answers found in a greedy continuation. A third asks without
the context, so that only memories can know: "context removed".
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from hope_jax.core.types import PyTree
from hope_jax.data.tokenizer import Tokenizer
from hope_jax.evals import statistics
from hope_jax.evals.arms.memorized import Records, compare, run_arms, update_statistics
from hope_jax.evals.reading.shared_read import generate_after, read_prompts, score_after
from hope_jax.evals.reading.subject import Subject
from hope_jax.evals.suite.journal import Journal
from hope_jax.evals.suite.run import Run, outcome, progress
from hope_jax.evals.tasks.prompts import Prompt

_TOKENS = 2**17
"""Tokens that a batch of prompts holds at most: attention caches take memory in proportion."""


class Group(NamedTuple):
    """Samples of one task and length in tokens; make: sample i."""

    task: str
    length: int
    make: Callable[[int], Prompt]

    @property
    def name(self) -> str:
        """The first part of its metrics' keys."""
        return f"{self.task}@{self.length}"


class Question(NamedTuple):
    """key: of the record. sample: its number in the group."""

    key: str
    sample: int


def evaluate(
    run: Run,
    name: str,
    settings: Mapping[str, Any],
    groups: Sequence[Group],
    count: int,
    answer_tokens: int,
    notes: Sequence[str],
) -> dict[str, Any]:
    """The outcome of an evaluation: the first `count` samples of each group, in each arm of `run`.

    settings: of the evaluation, resolved; answer_tokens: drawn at most; notes: on its data, for reports.
    "updates" holds of each group, arm and level what memorization wrote on average.
    """
    journal = run.journal(name, settings)
    metrics: dict[str, Any] = {}
    paired: dict[str, Any] = {}
    updates: dict[str, Any] = {}
    items: list[dict[str, Any]] = []
    for group in groups:
        records = ask(run, journal, group, count, answer_tokens)
        found = summarize(records, group.name)
        metrics |= found[0]
        paired |= found[1]
        updates[group.name] = update_statistics(records)
        items += [{"arm": arm, **item} for arm, of_arm in records.items() for item in of_arm]
        shown = (f"{arm} {metrics[f'{group.name}/choice/{arm}']['value']:.3f}" for arm in run.arms)
        progress(name).info("%s: choice %s", group.name, ", ".join(shown))
    journal.close()
    return outcome(
        run, name, settings=settings, metrics=metrics, paired=paired, items=items, updates=updates,
        notes=list(notes), seconds=journal.seconds(),
    )  # fmt: skip


def ask(run: Run, journal: Journal, group: Group, count: int, answer_tokens: int) -> Records:
    """The records of each arm for the first `count` samples of a group; see `answer`.

    What the arm `memorized` has read is the context, needles and all, and under `use_correct_answer` the
    whole prompt with its answers.
    """
    run = dataclasses.replace(run, batch_size=max(1, min(run.batch_size, _TOKENS // group.length)))
    made = lru_cache(maxsize=run.batch_size)(group.make)
    tokenizer = run.subject.trained.tokenizer

    def text(question: Question) -> np.ndarray:
        prompt = made(question.sample)
        if run.memorize.use_correct_answer:
            return tokenizer.encode(f"{prompt.text} {', '.join(prompt.answers)}")
        return tokenizer.encode(prompt.context)

    def score(questions: Sequence[Question], fast: PyTree | None) -> list[dict[str, Any]]:
        prompts = [made(question.sample) for question in questions]
        return answer(run.subject, prompts, fast, answer_tokens)

    items = [Question(f"{group.name}/{i}", i) for i in range(count)]
    return run_arms(run, journal, items, text, score)


def answer(
    subject: Subject, prompts: Sequence[Prompt], fast: PyTree | None, answer_tokens: int
) -> list[dict[str, Any]]:
    """A record for each prompt, read with memories `fast` (of as many contexts, or None).

    choice: `chosen`; the first answer is likelier than the distractor by `margin` nats. nll: of its `tokens`,
    in nats; it falls too where a memory has only learnt what such texts look like, which the margin does not
    count. match: `string_match` of the greedy continuation, `text`, of at most `answer_tokens` tokens.
    removed_choice, removed_margin, removed_nll: the same question and memories without the context.
    """
    tokenizer = subject.trained.tokenizer
    right = [continuation(tokenizer, p.after, p.answers[0]) for p in prompts]
    wrong = [continuation(tokenizer, p.after, p.distractor) for p in prompts]
    rows = [tokenizer.encode(p.text) for p in prompts]
    capacity = 1 + max(map(len, rows)) + max(answer_tokens, *(len(c) for c in right + wrong))
    read = read_prompts(subject, rows, fast, capacity=capacity)
    scores = [score_after(subject, read, candidates) for candidates in (right, wrong)]
    drawn = generate_after(subject, read, answer_tokens)
    bare_rows = [tokenizer.encode(p.before + p.after) for p in prompts]
    bare = read_prompts(subject, bare_rows, fast, capacity=capacity)
    removed = [score_after(subject, bare, candidates) for candidates in (right, wrong)]
    records = []
    for i, prompt in enumerate(prompts):
        written = tokenizer.decode(drawn[i])
        records.append(
            {
                "choice": chosen(prompt, scores[0][i].log_prob, scores[1][i].log_prob),
                "margin": scores[0][i].log_prob - scores[1][i].log_prob,
                "nll": -scores[0][i].log_prob,
                "tokens": scores[0][i].tokens,
                "match": string_match(written, prompt.answers),
                "text": written,
                "answers": list(prompt.answers),
                "depths": list(prompt.depths),
                "removed_choice": chosen(prompt, removed[0][i].log_prob, removed[1][i].log_prob),
                "removed_margin": removed[0][i].log_prob - removed[1][i].log_prob,
                "removed_nll": -removed[0][i].log_prob,
            }
        )
    return records


def chosen(prompt: Prompt, right: float, wrong: float) -> bool:
    """Whether the first answer, of log-likelihood `right`, is chosen over the distractor, of `wrong`.

    Of equal ones that of the lesser SHA-256 is chosen, whichever is right: a model that cannot tell them
    apart is right in half of the samples, and in the same ones in every arm.
    """
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


FIELDS = ("choice", "match", "nll", "margin", "removed_choice", "removed_nll", "removed_margin")
_CHANCE = {"choice": 0.5, "margin": 0.0}


def summarize(records: Records, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metrics and paired tests "name/field/arm" of `FIELDS`. With one answer a sample `match` is a hit
    or a miss; else it is a share of the answers. Both have Wilson's interval."""
    one = all(len(item["answers"]) == 1 for items in records.values() for item in items)
    shown = {
        arm: [{**item, "match": item["match"] == 1.0 if one else item["match"]} for item in items]
        for arm, items in records.items()
    }
    metrics: dict[str, Any] = {}
    paired: dict[str, Any] = {}
    for field in FIELDS:
        chance = _CHANCE.get(field.removeprefix("removed_"))
        found = compare(shown, field, f"{name}/{field}", chance)
        metrics |= found[0]
        paired |= found[1]
    for arm, items in shown.items() if not one else ():
        shares = statistics.share([item["match"] for item in items])
        metrics[f"{name}/match/{arm}"] = statistics.as_json(shares)
    return metrics, paired
