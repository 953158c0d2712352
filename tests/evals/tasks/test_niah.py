"""Needle-in-a-haystack prompts: what stands in them, where, how often, and how long they are."""

import re
from pathlib import Path

import numpy as np
import pytest

from hope_jax.core.errors import ConfigError, DataError
from hope_jax.data.tokenizer import Tokenizer
from hope_jax.data.train_tokenizer import train_model
from hope_jax.evals.suite.run import Run
from hope_jax.evals.tasks import niah
from hope_jax.evals.tasks.niah import (
    NOISE,
    TASKS,
    Prose,
    _Draft,
    load_prose,
    split_sentences,
)
from hope_jax.evals.tasks.retrieval import Prompt, most
from hope_jax.evals.tasks.segments import read_documents
from tests.evals.subjects import subject

TOKENIZER, PROSE = Tokenizer.load(), load_prose(None)
# Joins digits, but not all: its numbers are of several lengths.
LINES = [f"It was {n} in all." for n in range(10, 1000) if max(str(n)) < "5"]
OTHER = Tokenizer(train_model(LINES, 350, hard_vocab_limit=False), "other")
NEEDLE = re.compile(r"One of the special magic (numbers|uuids) for (\S+) is: (\S+)\.")
NUMBER = re.compile(r"[1-9]\d{6}")
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
WORDS = re.compile(r"[a-z]+-[a-z]+")


def made(name: str, length: int = 1200, index: int = 0, seed: int = 3) -> Prompt:
    return _Draft(TOKENIZER, seed, name, length, index, PROSE).prompt(length - niah.ANSWER_TOKENS)


def asked(prompt: Prompt) -> list[str]:
    """The keys that the question names."""
    (keys,) = re.findall(r"magic \w+ for (.*) mentioned in the provided text\?", prompt.after)
    return [key.removeprefix("and ") for key in keys.split(", ")]


@pytest.mark.parametrize("name", TASKS)
def test_the_prompt_holds_each_needle_once_and_the_distractor_nowhere(name: str) -> None:
    task, prompt = TASKS[name], made(name)
    found = [(key, value) for _, key, value in NEEDLE.findall(prompt.context)]
    of_keys = [value for wanted in asked(prompt) for key, value in found if key == wanted]
    assert sorted(of_keys) == sorted(prompt.answers) and len(of_keys) == task.answers
    assert all(prompt.text.count(answer) == 1 for answer in prompt.answers)
    assert prompt.distractor not in prompt.text and prompt.distractor not in prompt.answers
    assert (
        len(found)
        == len(set(found))
        == (len(found) if task.haystack == "needles" else task.keys * task.values)
    )
    assert len({key for key, _ in found}) >= task.keys
    for key, value in found:
        assert (UUID if task.key == "uuid" else WORDS).fullmatch(key)
        assert (UUID if task.value == "uuid" else NUMBER).fullmatch(value)
    assert (UUID if task.value == "uuid" else NUMBER).fullmatch(prompt.distractor)


@pytest.mark.parametrize("name", TASKS)
def test_answers_of_queries_come_in_the_order_of_the_question(name: str) -> None:
    prompt = made(name)
    value_of = {key: value for _, key, value in NEEDLE.findall(prompt.context)}
    if TASKS[name].values == 1:
        assert tuple(value_of[key] for key in asked(prompt)) == prompt.answers


def test_the_words_of_one_answer_and_of_many() -> None:
    """As the published template has them; in the prompt the kind is singular for one answer."""
    (key,) = asked(one := made("niah_single_2"))
    assert one.before == (
        "A special magic number is hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the number afterwards.\n"
    )
    assert one.after == (
        f"\nWhat is the special magic number for {key} mentioned in the provided text?"
        f" The special magic number for {key} mentioned in the provided text is"
    )
    keys = asked(many := made("niah_multiquery"))
    listed = f"{keys[0]}, {keys[1]}, {keys[2]}, and {keys[3]}"
    assert many.before == (
        "Some special magic numbers are hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the numbers afterwards.\n"
    )
    assert many.after == (
        f"\nWhat are all the special magic numbers for {listed} mentioned in the provided text?"
        f" The special magic numbers for {listed} mentioned in the provided text are"
    )
    assert "uuids" in made("niah_single_3").context and "uuids" not in made("niah_single_3").after


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("length", [700, 1200, 4096])
def test_prompt_and_answer_fill_the_length_and_no_more(name: str, length: int) -> None:
    prompt = made(name, length)
    tokens = 1 + len(TOKENIZER.encode(prompt.text))
    assert tokens + niah.ANSWER_TOKENS <= length
    unit = {"prose": 12, "noise": 40, "needles": 110}[TASKS[name].haystack]  # tokens that one has at most
    assert length - tokens - niah.ANSWER_TOKENS < unit


def test_haystacks_are_what_the_task_says() -> None:
    noise = made("niah_single_1").context.split("\n")
    assert set(noise) - {NOISE} == {line for line in noise if NEEDLE.fullmatch(line)}
    assert all(NEEDLE.fullmatch(line) for line in made("niah_multikey_3").context.split("\n"))
    prose = NEEDLE.sub("", made("niah_multikey_1").context)
    assert " ".join(prose.split()) in PROSE.words(0, 0) + " ".join(PROSE._words * 2)


def test_needles_in_prose_stand_between_sentences_at_the_forty_depths() -> None:
    """Each depth is one of forty percentages, none twice, so over many samples all parts are hit."""
    seen = []
    for index in range(30):
        prompt = made("niah_multikey_1", 900, index)
        assert len(prompt.depths) == 4 and list(prompt.depths) == sorted(prompt.depths)
        seen += prompt.depths
        needles = list(NEEDLE.finditer(prompt.context))
        prose = [s for s in split_sentences(prompt.context) if not NEEDLE.fullmatch(s)]
        places = {int(depth * len(prose) / 100) for depth in np.round(np.linspace(0, 100, 40)).astype(int)}
        for needle in needles:
            before = prompt.context[: needle.start()]
            earlier = [s for s in split_sentences(before.strip()) if s and not NEEDLE.fullmatch(s)]
            assert len(earlier) in places
            at_end = not NEEDLE.sub("", prompt.context[needle.end() :]).strip()
            assert at_end or not before or re.search(r"[.!?][\"'_)]? $", before)
    assert min(seen) < 0.05 and max(seen) > 0.9 and 0.35 < np.mean(seen) < 0.65


def test_noise_and_needle_haystacks_take_the_needle_on_any_line() -> None:
    depths = [
        made(name, 900, i).depths[0] for name in ("niah_single_1", "niah_multikey_2") for i in range(40)
    ]
    assert min(depths) < 0.1 and max(depths) > 0.85 and 0.35 < np.mean(depths) < 0.65


def test_a_sample_depends_on_seed_task_length_and_index_alone() -> None:
    wanted = made("niah_multivalue", index=5)
    assert made("niah_multivalue", index=5) == wanted
    assert made("niah_multivalue", index=6) != wanted != made("niah_multivalue", index=5, seed=4)
    assert made("niah_multivalue", 1300, index=5).answers != wanted.answers
    # Another order of draws, or another generator, would change samples that results were published of.
    assert made("niah_single_1", seed=0).answers == ("8669396",)


@pytest.mark.parametrize("name", TASKS)
def test_under_another_tokenizer_only_distractor_and_size_of_the_haystack_differ(name: str) -> None:
    """It takes other draws until a distractor is as long as the answer."""
    distractors = set()
    for index in range(24):
        drafts = [_Draft(tokenizer, 3, name, 1500, index, PROSE) for tokenizer in (TOKENIZER, OTHER)]
        one, other = ({**vars(draft), "tokenizer": None, "depths": draft.depths.tolist()} for draft in drafts)
        one["others"], other["others"] = ([draft._other(20), draft.lines.clear()] for draft in drafts)
        assert one == other
        distractors.add(len({draft.prompt(1200).distractor for draft in drafts}))
    assert 2 in distractors


def test_distractors_are_as_long_as_the_answer() -> None:
    """In tokens, or a choice would go to the shorter value."""
    for name in ("niah_single_1", "niah_multikey_3"):
        for index in range(8):
            prompt = made(name, 900, index)
            answer, distractor = (
                len(TOKENIZER.encode(" " + t)) for t in (prompt.answers[0], prompt.distractor)
            )
            assert answer == distractor


def test_too_short_a_length_names_the_least_one(tmp_path: Path) -> None:
    def check(length: int, room: int = niah.ANSWER_TOKENS) -> None:
        options = {"niah_tasks": ["niah_multiquery"], "niah_lengths": [length], "niah_answer_tokens": room}
        niah.evaluate.check(Run(subject(), tmp_path, limit=4, options=options))

    with pytest.raises(
        ConfigError, match=r"niah_lengths=300: too short for niah_multiquery: want at least (\d+)"
    ) as e:
        check(300)
    least = int(re.findall(r"at least (\d+)", str(e.value))[0])
    check(least + 30)  # of other draws than those of 300 tokens
    with pytest.raises(
        ConfigError, match=r"niah_answer_tokens=16: too few .* niah_multiquery: want at least (\d+)"
    ) as e:
        check(2000, 16)
    check(2000, int(re.findall(r"at least (\d+)", str(e.value))[0]))


def test_most_is_the_largest_that_fits() -> None:
    assert [most(lambda n, top=top: n <= top) for top in (1, 2, 3, 7, 1000)] == [
        1,
        2,
        3,
        7,
        1000,
    ]


def test_prose_starts_at_sentences_and_wraps_around() -> None:
    prose = Prose(["One two.\nThree four five.", 'Mr. Six said "seven." Eight.'])
    assert split_sentences(" ".join(prose._words)) == [
        "One two.", "Three four five.", 'Mr. Six said "seven."', "Eight.",
    ]  # fmt: skip
    assert prose.words(0.0, 3) == "One two. Three" and prose.words(0.99, 4) == "Eight. One two. Three"
    assert prose.words(0.3, 25).split()[:5] == prose.words(0.3, 25).split()[10:15]


def test_own_haystacks_come_from_a_file_or_a_folder(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("Last.\n")
    (tmp_path / "a.txt").write_text("First.\n\f\nSecond.\n")
    assert [d.text for d in read_documents("niah_haystack", str(tmp_path))] == ["First.", "Second.", "Last."]
    assert load_prose(str(tmp_path / "b.txt")).words(0.0, 3) == "Last. Last. Last."
    (tmp_path / "empty").mkdir()
    for path, message in (("absent", "no such file or folder"), ("empty", "no .txt file in this folder")):
        with pytest.raises(ConfigError, match=f"niah_haystack=.*{path}: {message}"):
            load_prose(str(tmp_path / path))
    (tmp_path / "white.txt").write_text(" \n")
    with pytest.raises(ConfigError, match="there is no text in it"):
        load_prose(str(tmp_path / "white.txt"))
    (tmp_path / "bytes.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match="not UTF-8"):
        load_prose(str(tmp_path / "bytes.txt"))
