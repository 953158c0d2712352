"""Questions on contexts: what is scored, and that one reading of a prompt serves all measures."""

from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hope_jax.core.errors import ConfigError
from hope_jax.evals import statistics
from hope_jax.evals.reading.memorize import Memorizer, Rule
from hope_jax.evals.reading.scoring import (
    Pair,
    Score,
    generate_after,
    generate_greedy,
    read_prompts,
    score_after,
    score_pairs,
)
from hope_jax.evals.suite.run import ARMS, Run
from hope_jax.evals.tasks import niah, passkey, retrieval
from hope_jax.evals.tasks.niah import load_prose
from hope_jax.evals.tasks.retrieval import Prompt, answer, chosen, continuation, string_match
from tests.evals.subjects import as_if_slow, subject
from tests.evals.tasks.test_niah import OTHER

RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(3, 1024, n).astype(np.int32) for n in (70, 75, 61, 75)]
CONTINUATIONS = [
    [RNG.integers(3, 1024, n).astype(np.int32) for n in sizes] for sizes in ((3, 9, 1, 2), (4, 1, 20, 3))
]


@pytest.mark.parametrize(
    "variant", ["hope_attention", pytest.param("hope_selfmod", marks=pytest.mark.nightly)]
)
def test_continuations_of_a_prompt_that_was_read_once_score_as_pairs_do(variant: str) -> None:
    """With memories of their own and prompts of different lengths; a drawn answer is the greedy one, whatever
    was scored before it."""
    small = subject(variant)
    fast = Memorizer(small, Rule())(PROMPTS).fast
    read = read_prompts(small, PROMPTS, fast, capacity=120)
    for candidates in (*CONTINUATIONS, CONTINUATIONS[0]):
        found = score_after(small, read, candidates)
        wanted = score_pairs(small, [Pair(*p) for p in zip(PROMPTS, candidates, strict=True)], fast)
        np.testing.assert_allclose(
            [s.log_prob for s in found], [s.log_prob for s in wanted], atol=1e-5, rtol=0
        )
        assert [s[1:] for s in found] == [s[1:] for s in wanted]
    drawn = generate_after(small, read, 5)
    for i, tokens in enumerate(generate_greedy(small, PROMPTS, 5, fast=fast)):
        np.testing.assert_array_equal(drawn[i], tokens)


class Knows:
    """In place of reading and drawing: a model that looks each question's key up in the prompt's text, and is
    right if it finds the value there, and wrong on purpose if `wrong`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, wrong: bool) -> None:
        self.tokenizer, self.wrong = subject().trained.tokenizer, wrong
        monkeypatch.setattr(retrieval, "read_prompts", self.read)
        monkeypatch.setattr(retrieval, "score_after", self.score)
        monkeypatch.setattr(retrieval, "generate_after", self.draw)

    def read(self, _: Any, prompts: Any, fast: Any, *, capacity: int) -> list[str]:
        return [self.tokenizer.decode(prompt) for prompt in prompts]

    def score(self, _: Any, texts: list[str], continuations: Any) -> list[Score]:
        scores = []
        for text, tokens in zip(texts, continuations, strict=True):
            value = self.tokenizer.decode(tokens).strip()
            known = f"is: {value}." in text or f"is {value}." in text
            scores.append(Score(-1.0 if known != self.wrong else -9.0, len(tokens), known))
        return scores

    def draw(self, _: Any, texts: list[str], max_tokens: int) -> list[np.ndarray]:
        found = []
        for text in texts:
            words = text.replace(".", " ").split()
            values = [
                b for a, b in zip(words, words[1:], strict=False) if a in ("is:", "is") and b[0].isdigit()
            ]
            found.append(self.tokenizer.encode("none" if self.wrong else " and ".join(values)))
        return found


def passkey_of(tokenizer: Any, length: int, seed: int, depth: float, room: int, index: int) -> Prompt:
    return passkey._Draft(tokenizer, seed, length, index, depth).prompt(length - room)


def found_by(model: Any, evaluation: Any, tmp_path: Path, **options: Any) -> dict[str, Any]:
    run = Run(subject(), tmp_path, limit=2, seed=1, options=options, records=True)
    return {key: metric["value"] for key, metric in evaluation.evaluate(run)["metrics"].items()}


@pytest.mark.parametrize("wrong", [False, True])
def test_a_model_that_knows_scores_one_and_one_that_is_wrong_zero(
    wrong: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Knows(monkeypatch, wrong)
    tasks = ["niah_single_2", "niah_multivalue", "niah_multiquery"]
    metrics = found_by(model, niah, tmp_path, niah_tasks=tasks, niah_lengths=[700])
    metrics |= found_by(model, passkey, tmp_path, passkey_lengths=[200])
    for task in (*(f"{t}@700" for t in tasks), "passkey@200"):
        assert metrics[f"{task}/choice/baseline"] == metrics[f"{task}/match/baseline"] == 1 - wrong
        assert metrics[f"{task}/nll/baseline"] == (9 if wrong else 1)
        assert metrics[f"{task}/margin/baseline"] == (-8 if wrong else 8)
        assert metrics[f"{task}/removed_margin/baseline"] == 0
    # Without the context neither candidate is known: the coins of the two samples decide.
    tokenizer, prose = subject().trained.tokenizer, load_prose(None)
    asked = {
        f"{t}@700": [niah._Draft(tokenizer, 1, t, 700, i, prose).prompt(572) for i in (0, 1)] for t in tasks
    }
    asked["passkey@200"] = [passkey_of(tokenizer, 200, 1, 1.0, 24, i) for i in (0, 1)]
    for name, prompts in asked.items():
        assert metrics[f"{name}/removed_choice/baseline"] == np.mean([coin(p) for p in prompts])
    assert len(metrics) == len(retrieval.FIELDS) * 4


def coin(prompt: Prompt) -> bool:
    """Whether a model that finds both candidates equally likely is right: the lesser SHA-256 is chosen."""
    answer, other = (sha256(value.encode()).hexdigest() for value in (prompt.answers[0], prompt.distractor))
    return answer < other


def test_a_model_that_is_blind_to_the_key_is_right_by_chance() -> None:
    """In the very samples where the coin says so, whichever candidate is right; no likelier one is passed."""
    tokenizer = subject().trained.tokenizer
    prompts = [passkey_of(tokenizer, 100, 0, 1.0, 24, i) for i in range(200)]
    hits = [chosen(p, -3.0, -3.0) for p in prompts]
    assert hits == [coin(p) for p in prompts]
    swapped = [p._replace(answers=(p.distractor,), distractor=p.answers[0]) for p in prompts]
    assert [chosen(p, -3.0, -3.0) for p in swapped] == [not hit for hit in hits]
    low, high = statistics.proportion(hits)[1:3]
    assert low < 0.5 < high
    assert all(chosen(p, -2.9, -3.0) and not chosen(p, -3.1, -3.0) for p in prompts)


def test_records_say_what_was_asked_and_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Knows(monkeypatch, wrong=False)
    options = {"niah_tasks": ["niah_multikey_1"], "niah_lengths": [700]}
    run = Run(subject(), tmp_path, limit=2, options=options, records=True)
    found = niah.evaluate(run)
    assert [item["key"] for item in found["items"]] == ["niah_multikey_1@700/0", "niah_multikey_1@700/1"]
    assert all(item["answers"][0] in item["text"] and len(item["depths"]) == 4 for item in found["items"])
    assert found["settings"]["label"] == "RULER-style, other haystack"
    metric = found["metrics"]["niah_multikey_1@700/choice/baseline"]
    assert (metric["n"], metric["chance"]) == (2, 0.5) and metric["ci95"][0] < 1 and not found["paired"]
    figures = niah.evaluate.figures(found)
    assert set(figures) == {"niah_choice", "niah_match", "niah_removed_choice"}
    assert as_if_slow(tmp_path) < niah.evaluate(run)["seconds"], "of all starts"


def test_string_match_is_the_share_of_answers_in_the_text() -> None:
    assert string_match(" 1234567, and 7654321.", ["1234567", "7654321", "1111111", "2222222"]) == 0.5
    assert string_match("ABC-d", ["abc-D"]) == 1.0 and string_match("", ["1"]) == 0.0


def test_a_continuation_is_what_the_tokenizer_makes_of_the_whole() -> None:
    tokenizer = subject().trained.tokenizer
    before = "The special magic number is"
    tokens = continuation(tokenizer, before, "1234567")
    whole = np.concatenate([tokenizer.encode(before), tokens])
    assert tokenizer.decode(whole) == f"{before} 1234567"
    np.testing.assert_array_equal(whole, tokenizer.encode(f"{before} 1234567"))


@pytest.mark.nightly
def test_passkeys_of_all_arms_by_a_real_model(tmp_path: Path) -> None:
    """The context that memories have read changes what is known without it; all else is as asked."""
    options = {"passkey_lengths": [128], "passkey_answer_tokens": 3}
    run = Run(subject(), tmp_path, limit=4, options=options, arms=ARMS, records=True)
    found = passkey.evaluate(run)
    keys = {f"passkey@128/{field}/{arm}" for field in retrieval.FIELDS for arm in ARMS}
    assert set(found["metrics"]) == keys
    assert set(found["paired"]) == {
        f"passkey@128/{field}/memorized-{other}"
        for field in retrieval.FIELDS
        for other in ("baseline", "control")
    }
    nll = [found["metrics"][f"passkey@128/removed_nll/{arm}"]["value"] for arm in ARMS]
    assert len(set(nll)) == 3
    updates = found["updates"]["passkey@128"]
    assert (
        set(updates) == {"memorized", "control"} and updates["memorized"]["cms/fast"]["updates_applied"] > 0
    )
    tokenizer = run.subject.trained.tokenizer
    prompts = [passkey_of(tokenizer, 128, 0, 1.0, 3, i) for i in range(4)]
    for item, prompt, direct in zip(
        found["items"], prompts, answer(run.subject, prompts, None, 3), strict=False
    ):
        assert item["answers"] == list(prompt.answers) and item["text"] == direct["text"]
        assert item["nll"] == pytest.approx(direct["nll"], abs=1e-4)


@pytest.mark.parametrize("length", [256, 1000])
@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_passkey_prompts(length: int, depth: float) -> None:
    tokenizer = subject().trained.tokenizer

    def made(index: int, seed: int = 0) -> Prompt:
        return passkey_of(tokenizer, length, seed, depth, 24, index)

    prompt = made(3)
    (key,) = prompt.answers
    assert key.isdigit() and len(key) == 5 and prompt.text.count(key) == 1
    assert prompt.distractor not in prompt.text and len(prompt.distractor) == 5
    assert len(tokenizer.encode(" " + key)) == len(tokenizer.encode(" " + prompt.distractor))
    assert length - 60 < 1 + len(tokenizer.encode(prompt.text)) + 24 <= length
    assert abs(prompt.depths[0] - depth) < 0.25
    assert made(3) == prompt and made(4).answers != prompt.answers != made(3, seed=1).answers


def test_under_another_tokenizer_a_passkey_prompt_is_the_same_but_for_lines_and_distractor() -> None:
    prompts = [
        [passkey_of(tokenizer, 400, 0, 0.0, 24, i) for i in range(8)]
        for tokenizer in (subject().trained.tokenizer, OTHER)
    ]
    for one, other in zip(*prompts, strict=True):
        assert one._replace(context="", distractor="") == other._replace(context="", distractor="")
        assert one.context.startswith(other.context)
    assert [p.distractor for p in prompts[0]] != [p.distractor for p in prompts[1]]


@pytest.mark.parametrize(
    ("evaluation", "options", "message"),
    [
        (niah, {"niah_tasks": ["single"]}, "niah_tasks: unknown name 'single'; choose from niah_single_1"),
        (niah, {"niah_tasks": []}, "niah_tasks=.*: want a list of at least one"),
        (niah, {"niah_lengths": [0]}, "niah_lengths=0: want a whole number of at least 1"),
        (niah, {"niah_lengths": [400]}, "niah_lengths=400: too short for niah_multikey_1: want at least 4"),
        (niah, {"niah_samples": 2.5}, "niah_samples=2.5: want a whole number"),
        (niah, {"niah_haystack": "absent"}, "niah_haystack=absent: no such file or folder"),
        (
            passkey,
            {"passkey_lengths": [40]},
            "passkey_lengths=40: too short for passkey: want at least [0-9]+ tokens",
        ),
        (passkey, {"passkey_prompts": True}, "passkey_prompts=True: want a whole number"),
        (passkey, {"passkey_depth": 2}, "passkey_depth=2: want a number from 0 to 1"),
    ],
)
def test_bad_options_are_refused_before_any_work(
    evaluation: Any, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluation.evaluate(Run(subject(), tmp_path, options=options))
    assert not list(tmp_path.iterdir())
