"""Synthetic tasks: strings against naive acceptors, answers against dictionaries, rows by number alone."""

import functools
import itertools
import re
from pathlib import Path

import numpy as np
import pytest

from hope_jax.config.experiment import DataConfig, EvalConfig, ExperimentConfig, TrainConfig
from hope_jax.core.errors import CheckpointError, ConfigError, DataError
from hope_jax.core.types import NO_TARGET
from hope_jax.data.inputs import open_inputs
from hope_jax.data.synthetic import TASKS, Example, Task, find_task, rows
from hope_jax.data.synthetic.rows import strings
from hope_jax.data.tokenizer import open_tokenizer
from hope_jax.models.spec import Architecture

LANGUAGES = ("parity", "aa", "abab", "anbn", "anbncn", "shuffle2")


def task(name: str, **options: int) -> Task:
    found = find_task(f"synthetic:{name}", options, 10_000)
    assert found is not None
    return found


def drawn(task: Task, split: str, count: int = 40) -> list[Example]:
    return [rows.drawn(task, split, 3, row) for row in range(count)]


def text(task: Task, ids: np.ndarray) -> str:
    return "".join(task.symbols()[int(i)] for i in ids)


def balanced(letters: str) -> bool:
    while letters != (shorter := letters.replace("()", "").replace("[]", "")):
        letters = shorter
    return not letters


def in_language(name: str, w: str) -> bool:
    """An acceptor that knows nothing of how strings are made."""
    if name == "shuffle2":
        return balanced(re.sub(r"[\[\]]", "", w)) and balanced(re.sub(r"[()]", "", w))
    letters = {"anbn": "ab", "anbncn": "abc"}.get(name)
    if letters is not None:
        n = len(w) // len(letters)
        return w == "".join(letter * n for letter in letters)
    return re.fullmatch({"aa": "(aa)*", "abab": "(abab)*"}[name], w) is not None


@functools.cache
def may_follow(name: str, prefix: str, alphabet: str, more: int) -> set[str]:
    """What may come next, by trying all continuations of up to `more` letters."""
    found = set()
    for length in range(more + 1):
        for rest in itertools.product(alphabet, repeat=length):
            if in_language(name, prefix + "".join(rest)):
                found.add(rest[0] if rest else ".")
    return found


@pytest.mark.parametrize("name", [n for n in LANGUAGES if n != "parity"])
def test_a_language_label_is_the_set_of_what_may_follow(name: str) -> None:
    language = task(name, longest={"abab": 8, "anbn": 3, "anbncn": 2}.get(name, 4))
    more = {"anbn": 5, "anbncn": 7}.get(name, 4)
    alphabet = "".join(s for s in language.symbols() if not s.startswith("="))
    for example in drawn(language, "bin0", 12):
        w = text(language, example.tokens)
        assert in_language(name, w) and len(w) == len(example.targets)
        for at, label in enumerate(example.targets):
            allowed = may_follow(name, w[: at + 1], alphabet, more)
            assert set(language.symbols()[label][1:]) == allowed


def test_parity_is_that_of_the_ones_so_far() -> None:
    parity = task("parity")
    for example in drawn(parity, "bin1"):
        bits = text(parity, example.tokens)
        for at, label in enumerate(example.targets):
            assert parity.symbols()[label] == ("=odd" if bits[: at + 1].count("1") % 2 else "=even")


@pytest.mark.parametrize("name", LANGUAGES)
def test_bins_have_the_published_sizes(name: str) -> None:
    language = task(name)
    letters = {"anbn": 2, "anbncn": 3}.get(name, 1)
    unit = {"aa": 2, "abab": 4, "shuffle2": 2}.get(name, 1)
    for split, (low, high) in {"train": (1, 50), "bin0": (1, 50), "bin1": (51, 100)}.items():
        sizes = {len(e.tokens) / letters for e in drawn(language, split, 300)}
        assert low <= min(sizes) < low + 8 and high - 8 < max(sizes) <= high
        assert all(size % unit == 0 for size in sizes)
    every = language.every("bin0")
    if name in ("parity", "shuffle2"):
        assert every is None
    else:
        assert every is not None
        assert [len(e.tokens) // letters for e in every] == list(range(unit, 51, unit))
        assert len(strings(language, "bin0", 5, 0)) == 5


@pytest.mark.parametrize("name", ["mqar", "in_context_recall", "memorization"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_recall_answers_are_those_of_a_dictionary(name: str, split: str) -> None:
    recall = task(name)
    names, table = recall.symbols(), {}
    for example in drawn(recall, split):
        words = [names[i] for i in example.tokens]
        known, asked = ({} if name != "memorization" else table), 0
        for at, word in enumerate(words):
            answer = example.targets[at]
            if name == "memorization":
                assert (answer == NO_TARGET) == (word != "?")
                if word == "?":
                    assert known.setdefault(words[at - 1], names[answer]) == names[answer]
                continue
            if not word.startswith("k"):
                assert answer == NO_TARGET
                continue
            if word in known:
                value, seen = known[word]
                assert names[answer] == value == words[at + 1] and example.groups[at] == at - seen
                asked += 1
            else:
                assert answer == NO_TARGET
            known[word] = (words[at + 1], at if name == "in_context_recall" or word not in known else seen)
        if name == "mqar":
            assert asked == 8 and len(set(words) - {"_"}) >= 9
        assert asked or name == "memorization"
    if name == "memorization":
        assert len(set(table.values())) == len(table) > 100


def test_mqar_splits_differ_in_pairs() -> None:
    recall = task("mqar", pairs=4, length=32)
    counts = {s: {int((e.targets >= 0).sum()) for e in drawn(recall, s)} for s in recall.splits}
    assert counts == {"test": {4}, "half": {2}, "double": {8}}
    assert {len(e.tokens) for e in drawn(recall, "double")} == {64}


def test_fuzzy_answers_spell_the_value_of_a_motif_that_came_before() -> None:
    fuzzy = task("fuzzy_recall")
    for split in ("train", "test"):
        for example in drawn(fuzzy, split):
            words = text(fuzzy, example.tokens)
            pairs = re.findall(r"((?:k\d+)+)((?:v\d+)+)", words)
            assert "".join(k + v for k, v in pairs) == words
            known: dict[str, str] = {}
            expected: list[str] = []
            for key, value in pairs:
                assert len(set(re.findall(r"k\d+", key))) == len(re.findall(r"k\d+", key)) <= 3
                assert split == "train" or len(re.findall(r"k\d+", key)) == 3
                answers = re.findall(r"v\d+", value)
                expected += ["-"] * (len(re.findall(r"k\d+", key)) - 1)
                expected += (answers if key in known else ["-"] * len(answers)) + ["-"]
                assert known.setdefault(key, value) == value
            found = ["-" if t == NO_TARGET else fuzzy.symbols()[t] for t in example.targets]
            assert found == expected and len(words) and set(found) != {"-"} and len(found) <= 128


def test_copies_are_asked_for_in_order() -> None:
    for name, kept in (("selective_copying", 16), ("compression", 31)):
        copying = task(name)
        for example in drawn(copying, "test"):
            words = [copying.symbols()[i] for i in example.tokens]
            sign = next(at for at, word in enumerate(words) if word in ("copy", "end"))
            before = [word for word in words[:sign] if word != "_"]
            assert len(before) == kept and words[sign + 1 :] == ["_"] * kept
            assert (example.targets[: sign + 1] == NO_TARGET).all()
            assert [copying.symbols()[i] for i in example.targets[sign + 1 :]] == before


def experiment(source: str = "synthetic:mqar", seed: int = 0, **data: object) -> ExperimentConfig:
    values = {"source": source, "seq_len": 64, "batch_size": 4, "prefetch": 0, **data}
    return ExperimentConfig(
        model=Architecture(vocab_size=80, dim=16),
        train=TrainConfig(steps=10, seed=seed),
        eval=EvalConfig(batches=2),
        data=DataConfig(**values),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("name", TASKS)
def test_every_task_gives_rows_that_depend_on_their_number_alone(name: str) -> None:
    seq_len = task(name).most_tokens()
    config = experiment(f"synthetic:{name}", seq_len=seq_len)
    tokenizer = open_tokenizer(config.data)
    inputs = open_inputs(config, tokenizer)
    iterator, again = inputs.train_iterator(), inputs.train_iterator()
    batches = [next(iterator) for _ in range(3)]
    again.set_state({**again.get_state(), "next_batch": 2})
    other = open_inputs(experiment(f"synthetic:{name}", seq_len=seq_len, seed=1), tokenizer)
    for value, same in zip(batches[2], next(again), strict=True):
        assert value.shape == (4, seq_len) and value.dtype == np.int32
        np.testing.assert_array_equal(value, same)
    assert any((a != b).any() for a, b in zip(next(other.train_iterator()), batches[0], strict=True))
    tokens, targets, segments = batches[0]
    assert ((targets == NO_TARGET) | (segments == 1)).all() and set(np.unique(segments)) <= {0, 1}
    assert max(tokens.max(), targets.max()) < tokenizer.vocab_size == len(set(tokenizer.decode(
        range(tokenizer.vocab_size)).split()))  # fmt: skip
    held_out = inputs.eval_batches()
    assert held_out[0].tokens.shape == (4, seq_len) and len(held_out) <= 2
    np.testing.assert_array_equal(held_out[0].tokens, inputs.eval_batches()[0].tokens)


def test_shares_of_two_processes_are_the_global_batch() -> None:
    inputs = open_inputs(experiment(), open_tokenizer(experiment().data))
    whole = next(inputs.train_iterator()).tokens
    shares = [next(inputs.train_iterator(p, 2)).tokens for p in range(2)]
    np.testing.assert_array_equal(np.concatenate(shares), whole)


def test_another_stream_is_refused_on_resume() -> None:
    first, second = (experiment(task_options={"pairs": pairs}) for pairs in (8, 4))
    state = open_inputs(first, open_tokenizer(first.data)).train_iterator().get_state()
    with pytest.raises(CheckpointError, match="data.task_options"):
        open_inputs(second, open_tokenizer(second.data)).train_iterator().set_state(state)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("synthetic:paritty", {}, "did you mean parity?"),
        ("synthetic:zzz", {}, "known: parity, aa"),
        ("synthetic:parity", {"pairs": 3}, "pairs: parity has no such option; it has longest"),
        (
            "synthetic:mqar",
            {"pair": 3},
            "pair: mqar has no such option; it has vocab, pairs, length; did you m",
        ),
        ("synthetic:parity", {"longest": 0}, "longest=0: want at least 1"),
        ("synthetic:abab", {"longest": 3}, "longest=3: no string is so short; use 4"),
        ("synthetic:mqar", {"pairs": 7}, "pairs=7: want an even number"),
        ("synthetic:mqar", {"length": 30}, "length=30: want a multiple of 4 from 32"),
        ("synthetic:anbn", {}, "data.seq_len=64: synthetic:anbn has strings of 100 tokens"),
        ("embedded", {"longest": 3}, "data.task_options has no effect under data.source='embedded'"),
    ],
)
def test_what_cannot_be_is_a_config_error(source: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        open_tokenizer(experiment(source, task_options=options).data)


def test_symbols_are_no_text() -> None:
    tokenizer = open_tokenizer(experiment("synthetic:parity").data)
    assert tokenizer.decode([0, 1, 3, 9]) == "0 1 =odd \ufffd"
    for ask in (lambda: tokenizer.encode("a"), lambda: tokenizer.bos_id, lambda: tokenizer.eos_id):
        with pytest.raises(DataError, match="trained on symbols .*synthetic:parity"):
            ask()
    assert tokenizer.sha256 != open_tokenizer(experiment("synthetic:aa").data).sha256


def test_a_folder_may_not_be_mistaken(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\f\ntwo")
    assert find_task(str(tmp_path), {}, 8) is None
