"""From a configuration to its inputs: where shards are looked for, and what is refused before training."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from hope_jax import cli
from hope_jax.config.check import validate
from hope_jax.config.experiment import (
    DataConfig,
    EvalConfig,
    ExperimentConfig,
    TrainConfig,
)
from hope_jax.core.errors import ConfigError, DataError
from hope_jax.data import mixture as found
from hope_jax.data.inputs import open_inputs
from hope_jax.data.shards import MANIFEST
from hope_jax.data.tokenizer import Tokenizer
from hope_jax.memory.levels import MemoryOptions
from hope_jax.models.spec import Architecture
from tests.data.shard_folder import numbered_rows, write_shards

TOKENIZER = Tokenizer.load()
MIXTURE = {"a": 0.75, "b": 0.25}


def config(source: Path | str, mixture=MIXTURE, *, reset: bool = False, **data) -> ExperimentConfig:
    values = {"seq_len": 16, "batch_size": 4, "prefetch": 0, **data}
    return ExperimentConfig(
        model=Architecture(vocab_size=1024, dim=16),
        memory=MemoryOptions(reset_at_document=reset),
        train=TrainConfig(steps=10, online_chunk_size=8),
        eval=EvalConfig(batches=1),
        data=DataConfig(source=str(source), mixture=mixture, **values),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    numbered_rows(tmp_path / "shards" / "a", 10, 8)
    numbered_rows(tmp_path / "shards" / "b", 110, 8)
    return tmp_path / "shards"


def refused(pattern: str, *arguments, **options) -> None:
    with pytest.raises(DataError, match=pattern):
        open_inputs(config(*arguments, **options), TOKENIZER)


def test_a_mixture_is_below_its_folder(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "hope_jax.data")
    inputs = open_inputs(config(folder), TOKENIZER)
    tokens = next(inputs.train_iterator()).tokens
    assert sorted(tokens[:, 0] >= 110) == [False, False, False, True]
    assert (inputs.eval_batches()[0].tokens[:, 0] >= 110).sum() == 1
    assert "a: weight 0.75, 8 rows, read 3.75 times in 10 steps" in caplog.text
    assert "held-out shards have" not in caplog.text
    few = dataclasses.replace(config(folder), eval=EvalConfig(batches=9))
    assert len(open_inputs(few, TOKENIZER).eval_batches()) == 2
    assert "eval.batches=9: the held-out shards have 2 in the mixture's proportions" in caplog.text


def test_an_environment_variable_names_another_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = folder.parent / "elsewhere"
    shutil.move(folder / "a", elsewhere)
    refused(r"data.mixture.a: there is no folder .*/a; .*HOPE_SHARD_DIR_A can name another", folder)
    monkeypatch.setenv("HOPE_SHARD_DIR_A", str(elsewhere))
    assert open_inputs(config(folder), TOKENIZER).sources[0].folder == elsewhere
    monkeypatch.setenv("HOPE_SHARD_DIR_A", str(folder / "gone"))
    refused("there is no folder .*/gone; .*HOPE_SHARD_DIR_A names it", folder)
    assert found.variable("refinedweb") == "HOPE_SHARD_DIR_REFINEDWEB"
    assert found.variable("my-web.2") == "HOPE_SHARD_DIR_MY_WEB_2"


def test_a_source_that_is_not_there_is_held_against_those_beside_it(folder: Path) -> None:
    (folder / "b").rename(folder / "speeches")
    refused(r"mixture.speches: .*shards there: a, speeches; did you mean", folder, {"a": 0.5, "speches": 0.5})


def test_a_single_folder_of_shards_just_works(folder: Path) -> None:
    inputs = open_inputs(config(folder / "b", {}), TOKENIZER)
    assert (next(inputs.train_iterator()).tokens >= 110).all() and len(inputs.eval_batches()) == 1
    refused("holds the shards of a, b; name the weight of each", folder, {})
    refused("is itself a folder of shards, so there is no a in it; leave data.mixture empty", folder / "a")


def test_embedded_text_is_used_whatever_the_mixture() -> None:
    inputs = open_inputs(config("embedded"), TOKENIZER)
    assert not inputs.sources and next(inputs.train_iterator()).tokens.shape == (4, 16)


def test_shards_without_a_manifest_are_unfinished(folder: Path) -> None:
    (folder / "a" / MANIFEST).unlink()
    refused("a: no manifest.json, so no finished shards; build them", folder)
    refused("a: no manifest.json, so no finished shards; build them", folder / "a", {})


def test_another_tokenizer_is_refused_by_both_digests(tmp_path: Path) -> None:
    numbered_rows(tmp_path / "a", 10, 8, tokenizer_sha256="f" * 64)
    refused(
        f"data.tokenizer='embedded' has the digest {TOKENIZER.sha256}, .* {'f' * 64}: name",
        tmp_path / "a",
        {},
    )
    numbered_rows(tmp_path / "b", 10, 8, vocab_size=2000)
    refused("vocab_size=2000, its tokenizer has 1024 tokens", tmp_path / "b", {})


def test_rows_that_do_not_fit_are_refused(folder: Path) -> None:
    refused("data.seq_len=12 does not divide the rows of .*16 tokens", folder, seq_len=12)
    refused(
        r"begin at the online chunk \(8 tokens\), those of .*/a begin at multiples of 1;", folder, reset=True
    )
    numbered_rows(folder / "c", 210, 8, multiple=16)
    assert open_inputs(config(folder / "c", {}, reset=True), TOKENIZER).sources


def test_a_shard_twice_is_refused(folder: Path) -> None:
    shutil.copytree(folder / "a", folder / "copy")
    refused(
        "copy/train-00000-of-00001.arrayrecord: the same shard as .*/a/train-.*; its rows",
        *(folder, {"a": 0.5, "copy": 0.5}),
    )


def test_sources_that_were_split_by_other_rules_are_refused(folder: Path) -> None:
    numbered_rows(folder / "c", 210, 8, salt="another")
    refused("hold documents out by different rules .*'another'", folder, {"a": 0.5, "c": 0.5})


@pytest.mark.parametrize(("split", "what"), [("train", "for training"), ("heldout", "held out")])
def test_a_source_without_text_is_refused(tmp_path: Path, split: str, what: str) -> None:
    texts = {"train": [np.full(40, 10)], "heldout": [np.full(40, 11)], split: []}
    write_shards(tmp_path / "a", texts, files=1)
    refused(f"a: the shards in .* have no text {what}", tmp_path / "a", {})


def test_damaged_shards_are_refused(folder: Path) -> None:
    path = folder / "b" / "train-00000-of-00001.arrayrecord"
    good = path.read_bytes()
    path.write_bytes(good[:50] + bytes([good[50] ^ 1]) + good[51:])
    refused("b/train-00000-of-00001.arrayrecord: another digest", folder)
    assert open_inputs(config(folder, verify_shards=False), TOKENIZER).sources
    path.write_bytes(good[:-1])
    refused("bytes, the manifest says", folder, verify_shards=False)
    path.unlink()
    refused("train-00000-of-00001.arrayrecord: a shard is missing", folder, verify_shards=False)


def test_a_manifest_that_says_more_rows_than_there_are_is_refused(folder: Path) -> None:
    path = folder / "b" / MANIFEST
    raw = json.loads(path.read_text())
    raw["files"]["train"][0]["rows"] += 50
    path.write_text(json.dumps(raw))
    refused(r"b/train-00000-of-00001.arrayrecord: 8 rows of \d+ bytes, the manifest says 58", folder)
    raw["files"]["train"][0]["rows"] -= 50
    path.write_text(json.dumps({**raw, "row_tokens": 32}))
    refused(r"8 rows of 68 bytes, the manifest says 8 of 132 \(row_tokens=32\)", folder)


def test_training_shards_that_are_held_out_too_are_refused(folder: Path) -> None:
    path = folder / "b" / MANIFEST
    raw = json.loads(path.read_text())
    raw["files"]["heldout"] = raw["files"]["train"]
    path.write_text(json.dumps(raw))
    refused("'train-00000-of-00001.arrayrecord' is listed twice", folder)
    shutil.copy(folder / "b" / "train-00000-of-00001.arrayrecord", folder / "b" / "copy")
    raw["files"]["heldout"] = [{**raw["files"]["train"][0], "name": "copy"}]
    path.write_text(json.dumps(raw))
    refused("copy: the same shard as .*/train-00000-of-00001.arrayrecord", folder)


def test_names_are_no_paths_and_have_variables_of_their_own(folder: Path) -> None:
    refused("'../shards/a' is not a source's name", folder, {"../shards/a": 1.0})
    refused("a-b and a.b share the variable HOPE_SHARD_DIR_A_B", folder, {"a-b": 0.5, "a.b": 0.5})


def test_shards_of_another_source_are_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "b").rename(folder / "x")
    monkeypatch.setenv("HOPE_SHARD_DIR_B", str(folder / "x"))
    open_inputs(config(folder), TOKENIZER)
    assert "are those of" not in caplog.text
    (folder / "x").rename(folder / "b")
    monkeypatch.setenv("HOPE_SHARD_DIR_A", str(folder / "b"))
    monkeypatch.delenv("HOPE_SHARD_DIR_B")
    refused("the same shard as", folder)
    assert f"data.mixture.a: the shards in {folder / 'b'} are those of b" in caplog.text


def test_weights_sum_to_one_and_are_positive(folder: Path) -> None:
    validate(config(folder))
    third = dict.fromkeys("abc", 1 / 3)
    validate(config(folder, third))
    with pytest.raises(ConfigError, match=r"data.mixture: the weights a=0.5, b=0.4 sum to 0.9, not to 1"):
        validate(config(folder, {"a": 0.5, "b": 0.4}))
    with pytest.raises(ConfigError, match="data.mixture.b: want a number, above 0; got 0.0"):
        _read(folder.parent, "data.mixture={'a': 1.0, 'b': 0.0}")


def test_a_mixture_is_set_from_the_command_line(tmp_path: Path) -> None:
    read = _read(tmp_path, "data.mixture={'wiki': 0.8, 'code': 0.2}", f"data.source={tmp_path}")
    assert dict(read.data.mixture) == {"wiki": 0.8, "code": 0.2}
    validate(dataclasses.replace(read))
    assert dict(_read(tmp_path, "data.mixture={}").data.mixture) == {}
    changed = _read(tmp_path, "data.mixture.code=0.3")
    assert changed.data.mixture["code"] == 0.3 and changed.data.mixture["refinedweb"] == 0.4
    with pytest.raises(ConfigError, match=r"refinedweb=0.4, .*code=0.3 sum to 1.2, not to 1"):
        validate(changed)


def _read(folder: Path, *overrides: str) -> ExperimentConfig:
    path = folder / "mixed.py"
    path.write_text("from hope_jax.config.presets import pilot_config as get_config\n")
    return cli.read_config(path, overrides)
