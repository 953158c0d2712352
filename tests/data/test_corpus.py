"""Documents: how files become documents, how the split behaves, what entropy means."""

import math
import random

import numpy as np
import pytest

from hope_jax.core.errors import DataError
from hope_jax.core.types import NO_TARGET
from hope_jax.data import corpus
from hope_jax.data.batches import unigram_entropy
from hope_jax.data.corpus import Document, load_documents, split_documents


def texts(documents):
    return [d.text for d in documents]


def test_embedded_corpus_has_many_documents_of_three_sources():
    documents = load_documents("embedded")
    assert len(documents) == 178
    assert {d.source for d in documents} == {"kjv.txt", "austen.txt", "sotu.txt"}
    assert sum(len(d.text) for d in documents) > 1_400_000
    assert min(len(d.text) for d in documents) > 1000


def test_embedded_split_holds_out_8_to_10_percent_of_every_source():
    documents = load_documents("embedded")
    _, held = split_documents(documents)
    for source in ("kjv.txt", "austen.txt", "sotu.txt"):
        total, out = (sum(len(d.text) for d in part if d.source == source) for part in (documents, held))
        assert 0.08 <= out / total <= 0.10, source


def test_split_is_a_partition_that_does_not_depend_on_order_names_or_other_documents():
    documents = [Document(f"text {i}", "a.txt", i) for i in range(300)]
    train, held = split_documents(documents)
    assert sorted(texts(train) + texts(held)) == sorted(texts(documents))
    assert 10 <= len(held) <= 50

    shuffled = [Document(d.text, "renamed.txt") for d in random.Random(0).sample(documents, 300)]
    assert set(texts(split_documents(shuffled)[1])) == set(texts(held))
    more = documents + [Document(f"new {i}", "b.txt", i) for i in range(100)]
    assert set(texts(held)) <= set(texts(split_documents(more)[1]))
    assert set(texts(train)) <= set(texts(split_documents(more)[0]))


def test_equal_texts_share_a_side(monkeypatch):
    monkeypatch.setattr(corpus, "HOLDOUT_FRACTION", 0.3)
    documents = [Document(f"text {i % 5}", "a.txt", i) for i in range(50)]
    train, held = split_documents(documents)
    assert held and not set(texts(train)) & set(texts(held))


@pytest.mark.parametrize("holdout", [1e-9, 1 - 1e-9])
def test_neither_side_is_empty_for_two_documents(monkeypatch, holdout):
    monkeypatch.setattr(corpus, "HOLDOUT_FRACTION", holdout)
    train, held = split_documents([Document("one", "a.txt"), Document("two", "b.txt")])
    assert len(train) == len(held) == 1


def test_salt_makes_another_split(monkeypatch):
    documents = [Document(f"text {i}", "a.txt", i) for i in range(300)]
    before = texts(split_documents(documents)[1])
    monkeypatch.setattr(corpus, "SPLIT_SALT", "x")
    assert texts(split_documents(documents)[1]) != before


@pytest.mark.parametrize("documents", [[], [Document("one", "a.txt")], [Document("one", "a.txt")] * 3])
def test_a_single_text_cannot_be_split(documents):
    with pytest.raises(DataError, match="form feed"):
        split_documents(documents)


def test_folder_files_are_documents_in_a_fixed_order(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("second\n", encoding="utf-8")
    (tmp_path / "a.txt").write_bytes("\ufefffirst é\r\n\f\r\nfirst, part two\n\f\n\n\f\n".encode())
    (tmp_path / "sub" / "c.txt").write_text("a form\ffeed within a line", encoding="utf-8")
    (tmp_path / "notes.md").write_text("not a document", encoding="utf-8")
    assert load_documents(str(tmp_path)) == [
        Document("first é", "a.txt", 0),
        Document("first, part two", "a.txt", 1),
        Document("second", "b.txt", 0),
        Document("a form\ffeed within a line", "sub/c.txt", 0),
    ]


def test_missing_and_empty_folders_are_readable_errors(tmp_path):
    with pytest.raises(DataError, match="nowhere.*no such folder"):
        load_documents(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"no \.txt file"):
        load_documents(str(tmp_path))
    (tmp_path / "blank.txt").write_text(" \n\f\n", encoding="utf-8")
    with pytest.raises(DataError, match="empty"):
        load_documents(str(tmp_path))


def test_a_file_that_is_not_utf8_is_named_with_the_offset(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(DataError, match=r"latin\.txt is not UTF-8 \(byte 0xe9 at offset 3\)"):
        load_documents(str(tmp_path))


def test_unigram_entropy_is_that_of_the_frequencies_without_padding():
    targets = np.array([[5, 5, 7, NO_TARGET], [9, 9, 9, 9]], np.int32)
    want = -(2 / 7 * math.log(2 / 7) + 1 / 7 * math.log(1 / 7) + 4 / 7 * math.log(4 / 7))
    assert unigram_entropy(targets) == pytest.approx(want, rel=1e-12)
    assert unigram_entropy(list(targets)) == pytest.approx(want, rel=1e-12)
    assert unigram_entropy([]) == unigram_entropy(np.full(3, NO_TARGET)) == 0.0
    assert unigram_entropy(np.arange(16)) == pytest.approx(math.log(16))
