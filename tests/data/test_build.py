"""What is built: all that is kept and nothing else, on one side of the split, the same bytes every time."""

from pathlib import Path

import pytest

from hope_jax.core.errors import ConfigError, DataError
from hope_jax.data import corpus, shards
from hope_jax.data.corpus import Document, split_documents
from tests.data.building import build, files, text, texts, write_jsonl, write_manifest


def test_documents_keep_their_order_and_their_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [text(i) for i in range(60)]
    write_jsonl(tmp_path / "a/1.jsonl", documents[:40])
    write_jsonl(tmp_path / "a/2.jsonl", documents[40:])
    statistics = build(write_manifest(tmp_path, {"a": {"paths": "a"}}, holdout=0.3, salt="s"))
    monkeypatch.setattr(corpus, "HOLDOUT_FRACTION", 0.3)
    monkeypatch.setattr(corpus, "SPLIT_SALT", "s")
    train, held = split_documents([Document(d, "") for d in documents])
    assert texts(tmp_path / "shards/a", "train") == [d.text for d in train]
    assert texts(tmp_path / "shards/a", "heldout") == [d.text for d in held]
    one = statistics["sources"]["a"]
    assert (one["read"], one["rejected"]) == (60, {})
    assert (one["documents_train"], one["documents_heldout"]) == (len(train), len(held))
    assert one["characters_train"] == sum(len(d.text) for d in train)
    manifest = shards.read_manifest(tmp_path / "shards/a")
    shards.check_files(tmp_path / "shards/a", manifest)
    assert one["tokens_train"] == sum(f.tokens for f in manifest.files["train"])
    assert one["tokens_until_repeated"] == one["tokens_train"]


def test_no_document_is_on_both_sides_even_where_duplicates_stay(tmp_path: Path) -> None:
    documents = [text(i, 2) for i in range(30)] * 2
    for name in ("a", "b"):
        write_jsonl(tmp_path / f"{name}.jsonl", documents)
    sources = {name: {"paths": f"{name}.jsonl"} for name in ("a", "b")}
    build(write_manifest(tmp_path, sources, holdout=0.4, dedup={"exact": False}))
    train, held = (
        {t for name in ("a", "b") for t in texts(tmp_path / "shards" / name, split)}
        for split in shards.SPLITS
    )
    assert train and held and not train & held
    assert train | held == set(documents)


def test_the_first_source_keeps_what_several_have(tmp_path: Path) -> None:
    both, near = text(1), text(2, 40)
    write_jsonl(tmp_path / "b.jsonl", [text(3), both, near, both])
    write_jsonl(tmp_path / "a.jsonl", [text(4), text(5), near + " One more.", both])
    sources = {name: {"paths": f"{name}.jsonl"} for name in ("b", "a")}
    minhash = {"n_grams": 3, "num_buckets": 8, "hashes_per_bucket": 4}
    made = build(write_manifest(tmp_path, sources, holdout=1e-6, dedup={"minhash": minhash}))["sources"]
    assert made["b"]["rejected"].get("exact_duplicate") == 1
    assert made["a"]["rejected"]["exact_duplicate"] == 1
    assert sum(one["rejected"].get("near_duplicate", 0) for one in made.values()) == 1
    assert texts(tmp_path / "shards/b", "train")[:2] == [text(3), both]
    assert texts(tmp_path / "shards/a", "train")[:2] == [text(4), text(5)]
    assert both not in texts(tmp_path / "shards/a", "train")


def test_the_number_of_workers_changes_nothing(tmp_path: Path) -> None:
    built = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        for i in range(3):
            write_jsonl(folder / f"a/{i}.jsonl", [text(100 * i + j, 3) for j in range(20)] + [text(0, 3)])
        path = write_manifest(
            folder, {"a": {"paths": "a", "shards": 2, "filters": {"gopher_repetition": {}}}}
        )
        build(path, workers)
        built.append(files(folder / "shards"))
    assert built[0] == built[1]
    assert sorted(built[0])[-1] == "a/train-00001-of-00002.arrayrecord"


def test_documents_are_padded_to_a_multiple(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [text(i, 1) for i in range(9)])
    build(write_manifest(tmp_path, {"a": {"paths": "a.jsonl"}}, document_multiple=16))
    manifest = shards.read_manifest(tmp_path / "shards/a")
    assert manifest.document_multiple == 16
    rows = shards.ShardRows(tmp_path / "shards/a", manifest, "train", 64)
    starts = [t for i in range(len(rows)) for t in range(1, 64) if 0 < rows[i][1][t] != rows[i][1][t - 1]]
    assert starts and all(t % 16 == 0 for t in starts)


def test_limits_count_documents_that_go_to_the_filters(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_jsonl(tmp_path / "a/1.jsonl", ["", text(1), "x", text(2), text(3)])
    write_jsonl(tmp_path / "a/2.jsonl", [text(4), text(5)])
    source = {"paths": "a", "shards": 2, "limit": 3}
    made = build(write_manifest(tmp_path, {"a": source}, holdout=1e-6))["sources"]["a"]
    assert texts(tmp_path / "shards/a", "train") == [text(1), text(2), text(4)]
    assert made["rejected"] == {"empty": 1, "too_short": 1}
    assert "sources.a: no document was held out" in caplog.text


def test_epochs_are_of_the_run_that_the_manifest_names(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_jsonl(tmp_path / f"{name}.jsonl", [text(ord(name))])
    sources = {"a": {"paths": "a.jsonl", "weight": 0.75}, "b": {"paths": "b.jsonl", "weight": 0.25}}
    made = build(write_manifest(tmp_path, sources, holdout=1e-6, train_tokens=1e6))["sources"]
    for one in made.values():
        assert one["epochs"] == round(1e6 * one["weight"] / one["tokens_train"], 4)
        assert one["tokens_until_repeated"] == round(one["tokens_train"] / one["weight"])


def test_shards_that_are_equal_are_refused(tmp_path: Path) -> None:
    for i in range(2):
        write_jsonl(tmp_path / f"a/{i}.jsonl", [text(1), text(2)])
    path = write_manifest(tmp_path, {"a": {"paths": "a", "shards": 2}}, dedup={"exact": False}, holdout=1e-6)
    with pytest.raises(DataError, match=r"train-00001-of-00002.arrayrecord: the same shard as .*-00000-of"):
        build(path)
    assert not (tmp_path / "shards/a/manifest.json").exists()
    made = build(write_manifest(tmp_path, {"a": {"paths": "a", "shards": 2}}, holdout=1e-6))["sources"]["a"]
    assert made["rejected"] == {"exact_duplicate": 2}  # with duplicates left out the second task has no file
    assert [f.name for f in shards.read_manifest(tmp_path / "shards/a").files["train"]] == [
        "train-00000-of-00002.arrayrecord"
    ]


@pytest.mark.parametrize("name", ["br[1]x", "st*r"])
def test_a_path_is_never_a_pattern(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    write_jsonl(folder / "a/1.jsonl", [text(1), text(1), text(2, 40), text(2, 40) + " One more.", text(3)])
    write_jsonl(folder / "b/1.jsonl", [text(4)])
    sources = {
        "a": {"paths": "a"},
        "b": {"reader": "huggingface", "dataset": "json", "data_files": "b/*.jsonl"},
    }
    minhash = {"n_grams": 3, "num_buckets": 4, "hashes_per_bucket": 2}
    made = build(write_manifest(folder, sources, holdout=1e-6, dedup={"minhash": minhash}))["sources"]
    assert made["a"]["rejected"] == {"exact_duplicate": 1, "near_duplicate": 1}
    assert texts(folder / "shards/b", "train") == [text(4)]
    with pytest.raises(
        ConfigError, match="sources.b.dataset=.*for a pattern; move it, or set `dataset: json`"
    ):
        build(write_manifest(folder, {"b": {"reader": "huggingface", "dataset": "b"}}))
