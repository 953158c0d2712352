"""Sources of texts for tokenizers: what is read, refused, held out and sampled."""

import gzip
from collections import Counter
from pathlib import Path

import pytest

from hope_jax.core.errors import DataError
from hope_jax.data import corpus
from tests.data.handmade import write


def read(*inputs: object, text_field: str = "text") -> list[tuple[str, list[str]]]:
    sources = corpus.open_sources([str(i) for i in inputs], text_field)
    return [(s.name, [d.text for d in s.documents()]) for s in sources]


def test_files_folders_and_json_lines_are_read_in_order(tmp_path: Path) -> None:
    write(
        tmp_path / "mixed",
        {
            "b.txt": "\ufeffthree\n\f\nfour\r\n",
            "a/z.txt": "one\n",
            "a/zz.jsonl.gz": gzip.compress(b'{"text": "two"}\n\n{"text": " "}\n'),
            "notes.md": "not a text",
        },
    )
    write(tmp_path, {"own.jsonl": '{"body": "five\\nsix", "text": 7}'})
    assert read(tmp_path / "mixed") == [("mixed", ["one", "two", "three", "four"])]
    both = read(tmp_path / "own.jsonl", tmp_path / "mixed" / "b.txt", text_field="body")
    assert both == [("own.jsonl", ["five\nsix"]), ("b.txt", ["three", "four"])]


def test_embedded_is_three_sources_with_the_corpus_in_its_order() -> None:
    found = read("embedded")
    assert [name for name, _ in found] == ["austen.txt", "kjv.txt", "sotu.txt"]
    assert [t for _, documents in found for t in documents] == [
        d.text for d in corpus.load_documents("embedded")
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("latin.txt", b"caf\xe9", r"--input: \S+latin\.txt is not UTF-8 \(byte 0xe9 at offset 3\)"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "caf\xe9"}', r"a\.jsonl, line 2: not UTF-8"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"text": "x"}' * 99, mtime=0)[:-12],
            r"cannot read \S+gz: Compressed file ended",
        ),
        ("a.jsonl.gz", b'{"text": "x"}', r"cannot read \S+gz: Not a gzipped file"),
        ("a.jsonl", b'{"text": "x"', r"a\.jsonl, line 1: not JSON"),
        ("a.jsonl", b'{"txt": "x"}', r"line 1: want an object with a string under 'text' \(--text_field\)"),
        ("a.jsonl", b'{"text": 1}', "line 1: want an object with a string"),
        ("a.jsonl", b'"x"', "line 1: want an object with a string"),
        ("a.jsonl", rb'{"text": "\ud800"}', "line 1: 'text' holds a lone surrogate"),
        (
            "a.jsonl",
            b'{"text": "x"}\n{"text": "y", "score": NaN}',
            r"line 2: not JSON \(NaN is no JSON value",
        ),
        ("a.jsonl", '{"text": "x"}'.encode("utf-16"), "line 1: the file is UTF-16, as its byte order mark"),
        ("a.txt", "text".encode("utf-16"), r"a\.txt is UTF-16, as its byte order mark says, not UTF-8"),
        ("a.txt", "text".encode("utf-32"), r"a\.txt is UTF-32, as its byte order mark says, not UTF-8"),
    ],
)
def test_bad_text_is_refused_by_file_and_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    write(tmp_path, {name: content})
    with pytest.raises(DataError, match=message):
        read(tmp_path / name)


def test_inputs_that_name_no_text_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {"a.csv": "x", "empty/readme.md": "x"})
    for name, message in {
        "none": "no such file or folder",
        "a.csv": r"one of \.txt, \.jsonl",
        "empty": "no file of text",
    }.items():
        with pytest.raises(DataError, match=f"--input=.*{name}.*{message}"):
            read(tmp_path / name)
    with pytest.raises(DataError, match="--input is missing"):
        read()
    with pytest.raises(DataError, match="given twice"):
        read("embedded", "embedded")


def test_what_is_held_out_is_what_training_on_the_corpus_holds_out() -> None:
    sources = corpus.open_sources(["embedded"])
    held = corpus.held_out([d.digest for d in s.documents()] for s in sources)
    training, held_out = corpus.split_documents(corpus.load_documents("embedded"))
    sides = [
        [d.text for s in sources for d in corpus.select(s, side, held)]
        for side in ("train", "heldout", "all")
    ]
    assert sides[0] == [d.text for d in training]
    assert sides[1] == [d.text for d in held_out]
    assert len(sides[2]) == len(training) + len(held_out)


def test_a_text_held_out_of_one_source_is_held_out_of_all() -> None:
    documents = [corpus.Document(f"text {i}", "a") for i in range(40)]
    digests = [d.digest for d in documents]
    held = corpus.held_out([digests])
    assert 0 < len(held) < 40
    assert corpus.held_out([digests, [next(iter(held))]]) == held
    assert corpus.held_out([digests[:1]]) == set()


def test_a_sample_is_as_large_as_it_may_be_in_order_and_the_seeds() -> None:
    items = [f"{i:03}" for i in range(100)]
    taken = corpus.sample(iter(items), 100, seed=1)
    assert len(taken) == 33 and taken == sorted(taken)
    assert taken == corpus.sample(items, 100, seed=1) != corpus.sample(items, 100, seed=2)
    assert corpus.sample(items, 300, seed=1) == corpus.sample(items, 0, seed=1) == items
    assert len(corpus.sample(items, 2, seed=1)) == 1
    assert corpus.sample([], 10, seed=1) == []


def test_a_sample_prefers_no_text() -> None:
    counts = Counter(t for seed in range(4000) for t in corpus.sample("abcdefgh", 2, seed))
    # 1,000 expected of each, with a standard deviation of 27.
    assert len(counts) == 8 and all(abs(n - 1000) < 110 for n in counts.values()), counts


def test_digest_of_texts_knows_their_order() -> None:
    assert corpus.combined_digest("ab") != corpus.combined_digest("ba")


def test_a_byte_order_mark_is_taken_off_where_a_file_begins(tmp_path: Path) -> None:
    lines = '\ufeff{"text": "one"}\r\n\r\n{"text": "two\ufeff"}'.encode()
    write(
        tmp_path,
        {"a.jsonl": lines, "b.jsonl.gz": gzip.compress(lines), "c.txt": "\ufeffone\n\f\n\ufefftwo"},
    )
    found = read(tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz", tmp_path / "c.txt")
    assert [texts for _, texts in found] == [["one", "two\ufeff"], ["one", "two\ufeff"], ["one", "\ufefftwo"]]


def test_files_of_the_operating_system_are_no_texts(tmp_path: Path) -> None:
    junk = b"\0\5\x16\7\xff"
    write(tmp_path, {"a.txt": "one", "._a.txt": junk, "__MACOSX/._b.jsonl": junk, "@eaDir/c.txt": junk})
    assert read(tmp_path) == [(tmp_path.name, ["one"])]
    assert [d.text for d in corpus.load_documents(str(tmp_path))] == ["one"]
