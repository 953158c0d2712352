"""Rows written to shards are what they were, by number, and damaged folders are refused by name."""

import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from hope_jax.core.errors import DataError
from hope_jax.data import shards
from hope_jax.data.shards import MANIFEST, RowWriter, ShardFile, ShardManifest, ShardRows

ROW, VOCAB = 8, 300


def documents() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(5, VOCAB, size) for size in (5, 1, 19, 8, 2, 30)]


def write(folder: Path, name: str, texts: list[np.ndarray], multiple: int = 1) -> ShardFile:
    writer = RowWriter(folder / name, row_tokens=ROW, vocab_size=VOCAB, pad_id=0)
    for tokens in texts:
        writer.add(tokens, -len(tokens) % multiple)
    return writer.close()


def made(folder: Path, multiple: int = 1) -> ShardManifest:
    texts = documents()
    files = {
        "train": (write(folder, "a", texts[:4], multiple), write(folder, "b", texts[4:5], multiple)),
        "heldout": (write(folder, "c", texts[5:], multiple),),
    }
    manifest = ShardManifest("s", ROW, VOCAB, "0" * 64, files, 0.1, "salt", document_multiple=multiple)
    (folder / MANIFEST).write_text(manifest.to_json())
    return manifest


@pytest.mark.parametrize("seq_len", [8, 4, 1])
def test_every_pair_of_neighbours_is_read_once(tmp_path: Path, seq_len: int) -> None:
    made(tmp_path)
    manifest = shards.read_manifest(tmp_path)
    rows = ShardRows(tmp_path, manifest, "train", seq_len)
    pairs = []
    for i in range(len(rows)):
        tokens, numbers = rows[i]
        assert tokens.shape == numbers.shape == (seq_len + 1,)
        pairs += [
            (int(tokens[t]), int(tokens[t + 1]))
            for t in range(seq_len)
            if numbers[t] and numbers[t] == numbers[t + 1]
        ]
    wanted = [(int(a), int(b)) for d in documents()[:5] for a, b in zip(d[:-1], d[1:], strict=True)]
    assert pairs == wanted
    assert sum(f.supervised for f in manifest.files["train"]) == len(wanted)
    assert sum(f.tokens for f in manifest.files["train"]) == sum(len(d) for d in documents()[:5])


def test_padded_documents_begin_where_a_multiple_does(tmp_path: Path) -> None:
    rows = ShardRows(tmp_path, made(tmp_path, multiple=4), "train", ROW)
    starts = []
    for i in range(len(rows)):
        _, numbers = rows[i]
        starts += [t for t in range(1, ROW) if numbers[t] > 0 and numbers[t] != numbers[t - 1]]
    assert starts and all(t % 4 == 0 for t in starts)


def test_worker_processes_get_rows_without_open_files(tmp_path: Path) -> None:
    rows = ShardRows(tmp_path, made(tmp_path), "train", ROW)
    before = rows[1]
    again = pickle.loads(pickle.dumps(rows))
    np.testing.assert_array_equal(again[1], before)


def test_rows_that_the_sequence_does_not_divide_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="data.seq_len=3 does not divide"):
        ShardRows(tmp_path, made(tmp_path), "train", 3)


def test_damage_is_named(tmp_path: Path) -> None:
    manifest = made(tmp_path)
    shards.check_files(tmp_path, manifest)
    path = tmp_path / "b"
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    with pytest.raises(DataError, match=r"b: \d+ bytes, the manifest says"):
        shards.check_files(tmp_path, manifest)
    path.write_bytes(good[:40] + bytes([good[40] ^ 1]) + good[41:])
    shards.check_files(tmp_path, manifest, digests=False)
    with pytest.raises(DataError, match="b: another digest"):
        shards.check_files(tmp_path, manifest)
    path.unlink()
    with pytest.raises(DataError, match="b: a shard is missing"):
        shards.check_files(tmp_path, manifest)


def test_a_damaged_row_is_named_when_it_is_read(tmp_path: Path) -> None:
    manifest = made(tmp_path)
    path = tmp_path / "a"
    good = path.read_bytes()
    path.write_bytes(good[:100] + bytes([good[100] ^ 1]) + good[101:])
    with pytest.raises(DataError, match="a: row 0 cannot be read .*; build the shards again"):
        ShardRows(tmp_path, manifest, "train", ROW)[0]


def test_a_shard_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    manifest = made(tmp_path)
    first = manifest.files["train"][0]
    (tmp_path / "copy").write_bytes((tmp_path / first.name).read_bytes())
    files = {**manifest.files, "train": (first, dataclasses.replace(first, name="copy"))}
    with pytest.raises(DataError, match="copy: the same shard as .*/a;"):
        shards.check_files(tmp_path, dataclasses.replace(manifest, files=files))


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "cannot be read"), ("[]", "want format 1, got list"), ('{"format": 2}', "want format 1, got 2"),
     ('{"format": 1}', "not a manifest")],
)  # fmt: skip
def test_other_manifests_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(DataError, match=message):
        shards.read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [("row_tokens", "8", "row_tokens='8'"), ("row_tokens", 0, "row_tokens=0"), ("holdout", 2, "holdout=2"),
     ("document_multiple", 0, "document_multiple=0"), ("vocab_size", None, "vocab_size=None"),
     ("files.size", "12", "size='12'"), ("files.rows", None, "rows=None"), ("files.name", None, "name=None")],
)  # fmt: skip
def test_values_of_another_type_or_size_are_refused(
    tmp_path: Path, key: str, value: object, message: str
) -> None:
    raw = json.loads(made(tmp_path).to_json())
    place = raw["files"]["train"][0] if key.startswith("files.") else raw
    place[key.removeprefix("files.")] = value
    (tmp_path / MANIFEST).write_text(json.dumps(raw))
    with pytest.raises(DataError, match=f"not a manifest of shards \\({message}\\)"):
        shards.read_manifest(tmp_path)


def test_a_folder_without_a_manifest_holds_no_finished_shards(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no manifest.json, so no finished shards"):
        shards.read_manifest(tmp_path)


def test_names_that_leave_the_folder_are_refused(tmp_path: Path) -> None:
    manifest = made(tmp_path)
    stray = dataclasses.replace(manifest.files["heldout"][0], name="../c")
    hostile = dataclasses.replace(manifest, files={**manifest.files, "heldout": (stray,)})
    (tmp_path / MANIFEST).write_text(hostile.to_json())
    with pytest.raises(DataError, match="is not a file's name"):
        shards.read_manifest(tmp_path)
