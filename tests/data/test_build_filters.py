"""Words, sentences and languages are found offline, and each filter's rejections bear its reason."""

import pickle
from pathlib import Path

import pytest
from datatrove.data import Document

from hope_jax.core.errors import ConfigError
from hope_jax.data.building import filters
from tests.data.building import build, text, texts, write_jsonl, write_manifest

ENGLISH = (
    "It is a truth universally acknowledged, that a single man of good fortune must be in want of a wife."
)
SPANISH = (
    "En un lugar de la Mancha, de cuyo nombre no quiero acordarme, no ha mucho tiempo que vivía un hidalgo."
)
CODE = "import os\nfor path in os.listdir('.'):\n    print(path)\n" * 3


def test_words_and_signs() -> None:
    words = filters.RegexWords().word_tokenize("It's a well-known “fact”... naïve, no? 3.5")
    assert words == ["It's", "a", "well-known", "“", "fact", "”...", "naïve", ",", "no", "?", "3", ".", "5"]
    assert filters.RegexWords().word_tokenize(" \n") == []


def test_sentences_lie_where_their_spans_say() -> None:
    words = filters.RegexWords()
    raw = 'One. Two? "Three!" Four\n\n five without an end '
    assert words.sent_tokenize(raw) == ["One.", "Two?", '"Three!"', "Four", "five without an end"]
    assert [raw[a:b].strip() for a, b in words.span_tokenize(raw)] == words.sent_tokenize(raw)
    assert words.span_tokenize("") == []


def test_languages_are_told_apart_without_a_download(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def no_network(*_: object) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    keep = filters.ShippedLanguageFilter(["en"])
    assert keep.filter(Document(ENGLISH, "")) is True
    assert keep.filter(Document(SPANISH, "")) == (False, "language")
    assert keep.filter(Document("\n".join([ENGLISH] * 500), "")) is True
    assert filters.ShippedLanguageFilter(["es", "en"]).filter(Document(SPANISH, "")) is True
    assert filters.ShippedLanguageFilter(["en"], threshold=0.999999).filter(Document(CODE, "")) is not True
    assert pickle.loads(pickle.dumps(keep)).filter(Document(ENGLISH, "")) is True  # goes to worker processes


def test_rejections_bear_the_filters_reasons(tmp_path: Path) -> None:
    good = [text(i, 12) for i in range(5)]
    bad = [
        SPANISH * 4,
        "\n".join(["the same line of a page is here again and again."] * 30),
        text(9, 1),
        "x {brace}. " + good[0],
    ]
    write_jsonl(tmp_path / "a.jsonl", [*good[:2], *bad, *good[2:]])
    chosen = {
        "language": {"languages": ["en"], "threshold": 0.3},
        "gopher_repetition": {"dup_n_grams": [], "top_n_grams": []},
        "c4": {},
        "gopher_quality": {"min_doc_words": 30, "min_avg_word_length": 2},
        "fineweb": {},
    }
    path = write_manifest(tmp_path, {"a": {"paths": "a.jsonl", "filters": chosen}}, holdout=1e-6)
    made = build(path)["sources"]["a"]
    assert made["rejected"] == {"language": 1, "dup_line_frac": 1, "too_few_sentences": 1, "curly_bracket": 1}
    assert len(texts(tmp_path / "shards/a", "train")) == 5


def test_a_document_of_which_a_filter_leaves_nothing_is_rejected(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [text(1), "no line of this text has an end\n" * 9])
    source = {"paths": "a.jsonl", "filters": {"c4": {"min_num_sentences": -1}}}
    made = build(write_manifest(tmp_path, {"a": source}, holdout=1e-6))["sources"]["a"]
    assert made["rejected"] == {"too_short_when_filtered": 1}


def test_other_words_are_a_choice_by_name() -> None:
    assert isinstance(filters.make_words("regex"), filters.RegexWords)
    with pytest.raises(ConfigError, match="words='klingon': .*or use 'regex'"):
        filters.make_words("klingon")
    with pytest.raises(
        ConfigError, match="words='eng': .*or use 'regex'"
    ):  # needs a package that is not ours
        filters.make_words("eng")
