"""Coverage of a tokenizer: counts by hand, the guard's exact limits, the embedded tokenizer's baseline."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from hope_jax.core.errors import ConfigError, DataError
from hope_jax.data import corpus, coverage
from hope_jax.data.corpus import open_sources
from hope_jax.data.coverage import BUCKETS, Report, compare, count
from hope_jax.data.tokenizer import Tokenizer
from tests.data import handmade

BASELINE = resources.files("hope_jax.data") / "assets" / "unigram_1024.coverage.json"
LETTERS = ("_", *"acehst")


def histogram(**counts: int) -> dict[str, int]:
    return {bucket: counts.get(f"n{bucket.strip('+')}", 0) for bucket in BUCKETS}


def test_counts_of_a_text_by_hand() -> None:
    tokenizer = handmade.tokenizer(*LETTERS, "_the", "_cat", "the", "he")
    # "the" | "_cat" "s" | "\n" | "t" "he" would be two: "the" is one | "_" "_the" | "_" é in two bytes
    found = count(tokenizer, ["the cats\nthe  the é"])
    wanted = {
        "documents": 1,
        "characters": 19,
        "tokens": 1 + 2 + 1 + 1 + 1 + 1 + 3,
        "words": 5,
        "word_tokens": 1 + 2 + 1 + 1 + 3,
        "words_by_tokens": histogram(n1=3, n2=1, n3=1),
        "byte_characters": 1,
        "unknown_tokens": 0,
    }
    assert {name: found[name] for name in coverage.COUNTS} == wanted
    assert found["tokens_per_word"] == 8 / 5
    assert found["single_token_share"] == 3 / 5
    assert found["tokens_per_character"] == 10 / 19
    assert found["byte_character_share"] == 1 / 19
    assert found["unknown_token_share"] == 0


def test_a_word_is_counted_with_the_space_before_it() -> None:
    tokenizer = handmade.tokenizer(*LETTERS, "_cat")
    assert count(tokenizer, ["a cat"])["words_by_tokens"] == histogram(n1=2)
    assert count(tokenizer, ["cat a"])["words_by_tokens"] == histogram(n3=1, n2=1)
    assert count(tokenizer, ["a\tcat"])["words_by_tokens"] == histogram(n1=1, n3=1)


def test_a_model_that_adds_a_space_itself_is_not_charged_for_ours() -> None:
    tokenizer = handmade.tokenizer(*LETTERS, "_cat", dummy_prefix=True)
    assert count(tokenizer, ["cat cat"])["words_by_tokens"] == histogram(n1=2)


def test_long_words_share_the_last_bucket() -> None:
    tokenizer = handmade.tokenizer(*LETTERS)
    found = count(tokenizer, ["aaaaaaa\naaaaaaaa\naaaaaaaaaaaa"])
    assert found["words_by_tokens"] == histogram(n7=1, n8=2)
    assert found["word_tokens"] == 7 + 8 + 12


def test_characters_without_a_piece_are_spelt_in_bytes_or_unknown() -> None:
    text = "a é 日本 \u2581"
    in_bytes = count(handmade.tokenizer(*LETTERS), [text])
    assert (in_bytes["byte_characters"], in_bytes["unknown_tokens"]) == (4, 0)
    assert in_bytes["tokens"] == 1 + 3 + 7 + 4
    unknown = count(handmade.tokenizer(*LETTERS, byte_fallback=False), ["a é 日a"])
    assert (unknown["byte_characters"], unknown["unknown_tokens"]) == (0, 2)


def test_words_have_the_same_tokens_as_in_their_text() -> None:
    tokenizer = Tokenizer.load()
    for document in corpus.load_documents("embedded"):
        found = count(tokenizer, [document.text])
        # These texts have one space between words, and no other white space but newlines.
        assert found["tokens"] == found["word_tokens"] + document.text.count("\n"), document.source
        assert found["words"] == len(document.text.split()) == sum(found["words_by_tokens"].values())


def embedded_report(split: str = "all", max_characters: int = 0, seed: int = 0) -> Report:
    sources = open_sources(["embedded"])
    return coverage.report_coverage(Tokenizer.load(), sources, split, max_characters, seed)


def test_sides_of_the_split_add_up_and_samples_are_the_seeds() -> None:
    whole, train, held = (embedded_report(side) for side in ("all", "train", "heldout"))
    assert coverage.add_counts([train["overall"], held["overall"]]) == whole["overall"]
    assert held["overall"]["documents"] == 14
    first, again, other = (embedded_report("heldout", 20_000, seed) for seed in (1, 1, 2))
    assert first == again and first["sources"] != other["sources"]
    assert [s["characters"] <= 20_000 for s in first["sources"][:2]] == [True, True]
    with pytest.raises(ConfigError, match=r"austen\.txt \(digest [0-9a-f]{64}\).*'seed': 1"):
        compare(first, other, increase=1, drop=1)


def source(name: str, words: int, tokens: int, single: int) -> dict[str, Any]:
    by_tokens = {**dict.fromkeys(BUCKETS, 0), "1": single, "2": words - single}
    counts = dict(zip(coverage.COUNTS, (1, 500, tokens, words, tokens, by_tokens, 0, 0), strict=True))
    return {"name": name, "text_sha256": f"digest of {name}", **coverage.add_counts([counts])}


def report(*sources: dict[str, Any]) -> Report:
    about = {"tokenizer": {"name": "t", "sha256": "0", "vocab_size": 9}, "sampling": {"split": "all"}}
    return {
        "kind": coverage.KIND, **about, "overall": coverage.add_counts(sources), "sources": list(sources),
    }  # fmt: skip


def worse(before: Report, now: Report, increase: float = 0.05, drop: float = 0.02) -> list[tuple[str, str]]:
    found = compare(before, now, increase, drop)
    assert len(found) == 2 * (1 + len(now["sources"]))
    return [(c.source, c.measure) for c in found if c.worse]


def test_the_guard_trips_just_past_its_limits() -> None:
    # 1.55 - 1.5 > 0.05 and 0.8 - 0.78 > 0.02 in floating point, which is not held against it.
    before = report(source("a", 100, 150, 80))
    assert worse(before, report(source("a", 100, 155, 78))) == []
    assert worse(before, report(source("a", 100, 156, 78))) == [
        ("overall", "tokens_per_word"),
        ("a", "tokens_per_word"),
    ]
    assert worse(before, report(source("a", 100, 155, 77))) == [
        ("overall", "single_token_share"),
        ("a", "single_token_share"),
    ]
    assert worse(before, report(source("a", 100, 156, 77)), increase=0.06, drop=0.03) == []
    assert worse(before, report(source("a", 100, 101, 99)), increase=0, drop=0) == []
    assert len(worse(before, report(source("a", 100, 151, 79)), increase=0, drop=0)) == 4


def test_a_small_source_cannot_hide_behind_a_large_one() -> None:
    large = source("large", 10_000, 12_000, 9000)
    before, now = report(large, source("b", 10, 12, 9)), report(large, source("b", 10, 13, 8))
    assert worse(before, now) == [("b", "tokens_per_word"), ("b", "single_token_share")]


def test_sources_are_told_by_their_text_and_not_by_name_or_order() -> None:
    a, b = source("a", 100, 150, 80), source("b", 100, 300, 10)
    assert worse(report(a, b), report({**b, "name": "a"}, {**a, "name": "b"})) == []
    for other in (report(a), report(a, b, b), report(a, {**b, "text_sha256": "0"})):
        with pytest.raises(ConfigError, match="another text"):
            worse(report(a, b), other)


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = report(source("ä", 100, 150, 80), source("b", 100, 300, 10))
    path = tmp_path / "r.json"
    path.write_text(json.dumps(written), encoding="utf-8")
    assert coverage.read_report(path) == written
    shown = json.loads(path.read_text(encoding="utf-8"))
    assert shown["overall"]["tokens_per_word"] == 2.25
    assert shown["overall"]["single_token_share"] == 0.45
    assert [s["tokens_per_word"] for s in shown["sources"]] == [1.5, 3.0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("{", "not a coverage report"),
        ("[]", "not a coverage report"),
        ('{"kind": "hope_jax.tokenizer"}', "is of kind"),
        ('{"kind": "hope_jax.coverage"}', "KeyError: 'tokenizer'|KeyError: 'sources'"),
        ('"words": "many"', "not a coverage report"),
        ('"words": 1.5', "not a coverage report"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "r.json"
    if content and content.startswith('"words"'):
        content = json.dumps(report(source("a", 100, 150, 80))).replace('"words": 100', content)
    if content:
        path.write_text(content)
    with pytest.raises(ConfigError, match=rf"--baseline=\S+r\.json: .*({message}).*--out=FILE"):
        coverage.read_report(path)


def test_a_source_without_text_is_refused(tmp_path: Path) -> None:
    handmade.write(tmp_path, {"blank.txt": "\n \n", "one.txt": "one text"})
    for name, split, message in [
        ("blank.txt", "all", r"blank\.txt holds no text; put"),
        ("one.txt", "heldout", r"one\.txt holds no text on the side 'heldout'"),
    ]:
        with pytest.raises(DataError, match=message):
            coverage.report_coverage(Tokenizer.load(), open_sources([str(tmp_path / name)]), split, 0, 0)


def run(arguments: Sequence[object], cwd: Path) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).parents[2])
    return subprocess.run(
        [sys.executable, "-m", "hope_jax.data.coverage", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_embedded_tokenizer_covers_the_embedded_corpus_as_its_baseline_says(tmp_path: Path) -> None:
    """The regression guard of the shipped tokenizer; its report is also the shipped one, to the byte."""
    done = run(["--input=embedded", f"--baseline={BASELINE}", "--out=now.json"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "guard passed: overall: tokens_per_word was 1.9707, is 1.9707 (+0.0000)" in done.stdout
    assert (tmp_path / "now.json").read_bytes() == BASELINE.read_bytes()
    lines = {line.split()[0]: line.split() for line in reversed(done.stdout.splitlines()) if line}
    overall = json.loads(BASELINE.read_bytes())["overall"]
    assert lines["overall"][1:4] == [
        f"{overall['documents']}",
        f"{overall['words']:,}",
        f"{overall['tokens_per_word']:.4f}",
    ]


def test_the_guard_command_fails_with_both_numbers_and_says_2_for_other_texts(tmp_path: Path) -> None:
    handmade.write(tmp_path, {"a.txt": "the cat\nthe hat", "b.txt": "sea"})
    (tmp_path / "good.model").write_bytes(handmade.tokenizer(*LETTERS, "_cat", "the", "_hat").model)
    (tmp_path / "poor.model").write_bytes(handmade.tokenizer(*LETTERS, "_cat", "the").model)
    made = run(["--input=a.txt", "--tokenizer=good.model", "--out=r.json"], tmp_path)
    assert made.returncode == 0 and "guard" not in made.stdout
    guard = ["--input=a.txt", "--tokenizer=poor.model", "--baseline=r.json"]
    failed = run(guard, tmp_path)
    assert failed.returncode == 1
    assert (
        "a.txt: tokens_per_word was 1.0000, is 1.7500 (+0.7500), may grow by 0.05; "
        "a.txt: single_token_share was 1.0000, is 0.7500 (-0.2500), may fall by 0.02" in failed.stderr
    )
    assert failed.stderr.startswith("error: --tokenizer=poor.model covers the text worse")
    allowed = ["--max_tokens_per_word_increase=0.75", "--max_single_token_drop=0.25"]
    assert run([*guard, *allowed], tmp_path).returncode == 0
    other = run([*guard, "--input=b.txt"], tmp_path)
    assert other.returncode == 2 and "another text" in other.stderr
    assert len(other.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--input=embedded", "--out=none/r.json"], 2, "--out=none/r.json: want a file in a folder"),
        (["--input=embedded", "--baseline=none.json"], 2, "--baseline=none.json: No such file"),
        (["--input=none"], 1, "--input=none: no such file or folder"),
        ([], 1, "--input is missing"),
        (["--input=embedded", "--tokenizer=none.model"], 1, "none.model"),
        (["embedded"], 2, "unexpected argument 'embedded'"),
        (
            ["--input=embedded", "--max_single_token_drop=inf"],
            2,
            "--max_single_token_drop=inf: want a finite",
        ),
    ],
)
def test_bad_usage_is_one_paragraph(tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    done = run(arguments, tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr and len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
