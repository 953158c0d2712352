"""Readers: what is in files, and what becomes of bad input: a rejection that is counted, or a clear error."""

import gzip
import json
import logging
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from hope_jax.core.errors import ConfigError, DataError
from tests.data.building import build, text, texts, write_jsonl, write_manifest

GOOD = [text(i) for i in range(4)]


def read(folder: Path, **source: object) -> tuple[list[str], dict[str, int]]:
    """(documents, rejections) of a source."""
    made = build(write_manifest(folder, {"a": source}, holdout=1e-6))["sources"]["a"]
    return texts(folder / "shards/a", "train"), made["rejected"]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_json_lines(tmp_path: Path, suffix: str) -> None:
    raw = "".join(json.dumps({"id": i, "body": d}) + "\n" for i, d in enumerate(GOOD)).encode()
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[suffix]
    (tmp_path / "a").mkdir()
    (tmp_path / f"a/x.jsonl{suffix}").write_bytes(pack(raw))
    assert read(tmp_path, reader="jsonl", paths="a", field="body") == (GOOD, {})


def test_bad_json_lines_are_counted_by_reason(tmp_path: Path) -> None:
    rows = [
        {"text": ""},
        {"text": " \n"},
        {"text": "x"},
        {"text": "a\0" + GOOD[0]},
        {"other": 1},
        {"text": 3},
        [1],
    ]
    lines = [json.dumps(row).encode() for row in rows]
    lines += [
        b'{"text": "\xff\xfe ' + GOOD[0].encode() + b'"}',
        b'{"text": "cut',
        b'{"text": "\\ud800 lone half"}',
        b"",
    ]
    lines += [json.dumps({"text": GOOD[0] * 40}).encode(), json.dumps({"text": "y" * 100_000}).encode()]
    good = [json.dumps({"text": d}).encode() for d in GOOD]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([*good[:2], *lines, *good[2:]]))
    documents, rejected = read(tmp_path, reader="jsonl", paths="a.jsonl", max_bytes=4096)
    assert documents == GOOD
    assert rejected == {
        "empty": 3, "too_short": 1, "nul": 1, "no_text": 3, "invalid_utf8": 1, "invalid_json": 2,
        "too_long": 2,
    }  # fmt: skip


def test_text_files(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/2.txt").write_text(f"{GOOD[2]}\n\f\n\f\n{GOOD[3]}\n")
    (tmp_path / "a/1.txt").write_text(f"\ufeff{GOOD[0]}\n\f\n{GOOD[1]}")
    assert read(tmp_path, reader="text", paths="a") == (GOOD, {})
    assert read(tmp_path, reader="text", paths=["a/2.txt", "a/1.txt"])[0] == [*GOOD[2:], *GOOD[:2]]


def test_whole_files_by_a_pattern(tmp_path: Path) -> None:
    for name, body in (("b/x.py", "# one\n\f\n" + GOOD[0]), ("b/c/y.py", GOOD[1]), ("b/z.txt", GOOD[2])):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(body)
    documents, rejected = read(tmp_path, reader="text", paths="b", glob="**/*.py", separator="none")
    assert sorted(documents) == sorted(["# one\n\f\n" + GOOD[0], GOOD[1]]) and rejected == {}


def test_bad_texts_are_counted_by_reason(tmp_path: Path) -> None:
    bad = [b"x", b"\xff" + GOOD[0].encode(), GOOD[0].encode() + b"\0", b"z" * 5000, b"z\n" * 3000]
    (tmp_path / "a.txt").write_bytes(b"\n\f\n".join([GOOD[0].encode(), *bad, GOOD[1].encode()]))
    documents, rejected = read(tmp_path, reader="text", paths="a.txt", max_bytes=4096)
    assert documents == GOOD[:2]
    assert rejected == {"too_short": 1, "invalid_utf8": 1, "nul": 1, "too_long": 2}


def test_one_line_of_100_megabytes_is_a_rejection(tmp_path: Path) -> None:
    with (tmp_path / "a.jsonl").open("wb") as file:
        file.write(json.dumps({"text": GOOD[0]}).encode() + b'\n{"text": "')
        for _ in range(100):
            file.write(b"x" * 2**20)
        file.write(b'"}\n' + json.dumps({"text": GOOD[1]}).encode())
    assert read(tmp_path, reader="jsonl", paths="a.jsonl") == (GOOD[:2], {"too_long": 1})


def test_parquet(tmp_path: Path) -> None:
    broken = pa.Array.from_buffers(  # Arrow does not check what it is given
        pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")]
    )
    column = pa.chunked_array([pa.array([*GOOD[:2], None, ""]), broken, pa.array(GOOD[2:])])
    pq.write_table(pa.table({"content": column, "n": pa.array(range(7))}), tmp_path / "a.parquet")
    documents, rejected = read(tmp_path, reader="parquet", paths="a.parquet", field="content")
    assert documents == GOOD and rejected == {"empty": 1, "invalid_utf8": 1, "no_text": 1}
    with pytest.raises(DataError, match=r"a\.parquet: the column 'n' holds int64, not text; set sources\.a"):
        read(tmp_path, reader="parquet", paths="a.parquet", field="n")
    with pytest.raises(
        DataError, match=r"a\.parquet: no column 'text'; set sources\.a\.field to one of content, n"
    ):
        read(tmp_path, reader="parquet", paths="a.parquet")


def test_a_truncated_archive_is_an_error_that_names_it(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": GOOD}), tmp_path / "x.parquet")
    write_jsonl(tmp_path / "x.jsonl", GOOD * 100)
    whole = gzip.compress((tmp_path / "x.jsonl").read_bytes())
    (tmp_path / "x.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    raw = (tmp_path / "x.parquet").read_bytes()
    (tmp_path / "x.parquet").write_bytes(raw[: len(raw) // 2])
    for reader, name in (("jsonl", "x.jsonl.gz"), ("parquet", "x.parquet")):
        with pytest.raises(DataError, match=f"{name}: .*truncated.*fetch it again, or take it out"):
            read(tmp_path, reader=reader, paths=name)
        assert not list(tmp_path.glob("shards/*/manifest.json"))
        assert not list(tmp_path.glob("shards/*/*.arrayrecord"))


def test_a_source_of_which_nothing_is_left_is_an_error(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["", "x"])
    with pytest.raises(
        DataError, match=r"sources\.a: no training document is left of 2 .*'empty': 1.*mend the source"
    ):
        read(tmp_path, paths="a.jsonl")
    assert not list(tmp_path.glob("shards/*/manifest.json"))


def test_hugging_face_rows_with_a_fallback_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_jsonl(tmp_path / "set/train.jsonl", [*GOOD, ""])
    source = {"reader": "huggingface", "dataset": str(tmp_path / "set"), "split": "train", "limit": 3}
    assert read(tmp_path, **source) == (GOOD[:3], {})
    with pytest.raises(DataError, match=r"sources\.a\.split='extra': .*set fallback_split"):
        read(tmp_path, **{**source, "split": "extra"})
    with pytest.raises(DataError, match=r"sources\.a\.fallback_split='none'"):
        read(tmp_path, **{**source, "split": "extra", "fallback_split": "none"})
    with caplog.at_level(logging.WARNING, "hope_jax"):
        made = read(tmp_path, **{**source, "split": "extra", "fallback_split": "train", "limit": None})
    assert made == (GOOD, {"empty": 1})
    assert "has no split 'extra': reading 'train', its fallback_split, instead" in caplog.text
    statistics = json.loads((tmp_path / "statistics.json").read_text())
    assert statistics["sources"]["a"]["split"] == ["train"]


def test_hugging_face_rows_are_shared_among_tasks(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "set/train.jsonl", GOOD)
    source = {"reader": "huggingface", "dataset": "set", "shards": 2}
    assert sorted(read(tmp_path, **source)[0]) == sorted(GOOD)
    files = {"reader": "huggingface", "dataset": "json", "data_files": "set/*.jsonl"}
    assert read(tmp_path, **files)[0] == GOOD
    write_jsonl(tmp_path / "set/train.jsonl", GOOD[:3])
    assert read(tmp_path, **files)[0] == GOOD[:3]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_bad_hugging_face_rows_are_counted_by_reason(tmp_path: Path, kind: str) -> None:
    (tmp_path / "set").mkdir()
    if kind == "parquet":
        raw = pa.array([*(d.encode() for d in GOOD), b"\xff\xfe " * 20, None, b"", b"x"], pa.binary())
        column = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers(), raw.null_count)
        pq.write_table(pa.table({"text": column}), tmp_path / "set/train.parquet")
    else:
        lines = [json.dumps({"text": text}).encode() for text in (*GOOD, None, "", "x")]
        lines.append(b'{"text": "\xff\xfe long enough to be a document of its own"}')
        (tmp_path / "set/train.jsonl").write_bytes(b"\n".join(lines))
    documents, rejected = read(tmp_path, reader="huggingface", dataset="set")
    assert documents == GOOD and rejected == {"empty": 1, "invalid_utf8": 1, "no_text": 1, "too_short": 1}


def test_a_hugging_face_dataset_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    lines = "".join(json.dumps({"text": f"{i} {text(i, 40)}"}) + "\n" for i in range(2000)).encode()
    packed = {"gz": gzip.compress(lines, 1), "zst": zstandard.compress(lines, 1)}
    source = {"reader": "huggingface", "dataset": "set"}
    for suffix, raw in packed.items():
        path = tmp_path / f"set/train.jsonl.{suffix}"
        for part in (raw[:300], raw[: -len(raw) // 4]):
            path.write_bytes(part)
            with pytest.raises(DataError, match=r"sources\.a: the dataset '.*/set' cannot be (had|read)"):
                read(tmp_path, **source)
        path.unlink()
    half = b'{"text": "\\ud800 half of a pair, and long enough to be a document"}\n'
    (tmp_path / "set/train.jsonl").write_bytes(lines + half)
    with pytest.raises(
        DataError, match=r"the dataset '.*/set' cannot be read .* read its files with the reader"
    ):
        read(tmp_path, **source)
    assert not list(tmp_path.glob("shards/*/manifest.json"))


def test_only_a_missing_split_has_a_fallback(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_jsonl(tmp_path / "set/train.jsonl", GOOD)
    source = {"reader": "huggingface", "dataset": "set", "config": "nope", "fallback_split": "train"}
    with pytest.raises(
        DataError, match=r"sources\.a: the dataset '.*/set' cannot be had .*'nope'.* check its name"
    ):
        read(tmp_path, **source)
    assert "fallback_split" not in caplog.text


def test_a_build_does_not_read_what_it_made(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in/x.jsonl", GOOD)
    for source in ({"reader": "jsonl"}, {"reader": "text", "glob": "**/*", "min_characters": 1}):
        path = write_manifest(tmp_path, {"a": {**source, "paths": "."}}, holdout=1e-6)
        first = build(path)
        assert build(path) == first
    source = {"reader": "huggingface", "dataset": "in"}
    with pytest.raises(ConfigError, match=r"out=.*/in/shards: lies in the dataset of sources\.a"):
        build(write_manifest(tmp_path, {"a": source}, out="in/shards"))


def test_a_file_name_of_any_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write_jsonl(tmp_path / "x.jsonl", GOOD).rename(os.fsdecode(os.fsencode(tmp_path) + b"/a/caf\xe9.jsonl"))
    assert read(tmp_path, reader="jsonl", paths="a") == (GOOD, {})


def test_a_dataset_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"sources\.a: the dataset 'no/such' cannot be had .*check its name"):
        read(tmp_path, reader="huggingface", dataset="no/such")


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_byte_order_mark_takes_no_document_away(tmp_path: Path, suffix: str) -> None:
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[suffix]
    raw = "".join(json.dumps({"text": d}) + "\r\n" for d in GOOD).encode("utf-8-sig")
    (tmp_path / f"a.jsonl{suffix}").write_bytes(pack(raw))
    (tmp_path / f"a.txt{suffix}").write_bytes(pack("\n\f\n".join(GOOD).encode("utf-8-sig")))
    for reader, name in (("jsonl", "a.jsonl"), ("text", "a.txt")):
        assert read(tmp_path, reader=reader, paths=f"{name}{suffix}") == (GOOD, {})


def test_not_a_number_is_no_json(tmp_path: Path) -> None:
    scores = (1, float("nan"), float("inf"), 2)
    rows = [{"text": d, "score": x} for d, x in zip(GOOD, scores, strict=True)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = read(tmp_path, reader="jsonl", paths="a.jsonl")
    assert found == ([GOOD[0], GOOD[3]], {"invalid_json": 2})


def test_files_of_another_encoding_are_named(tmp_path: Path) -> None:
    """Refused where nobody knows how many documents they hold; else each is one that is rejected."""
    (tmp_path / "a").mkdir()
    for i, good in enumerate(GOOD):
        (tmp_path / f"a/{i}.txt").write_text(good)
    (tmp_path / "a/x.txt").write_text(GOOD[0], encoding="utf-16")
    (tmp_path / "a/._0.txt").write_bytes(b"\0\5\x16\7")
    with pytest.raises(DataError, match=r"x\.txt is UTF-16, as its byte order mark says"):
        read(tmp_path, reader="text", paths="a")
    found = read(tmp_path, reader="text", paths="a", separator="none")
    assert found == (GOOD, {"invalid_utf8": 1})
