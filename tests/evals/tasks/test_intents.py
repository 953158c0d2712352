"""Classification data: published schemas, order of classes, disjoint splits."""

import json
from pathlib import Path

import pytest

from hope_jax.core.errors import ConfigError, DataError
from hope_jax.evals.tasks import intents
from tests.evals.tasks.intents_data import write_banking, write_clinc, write_dbpedia


def test_steps_of_each_data_set(tmp_path: Path) -> None:
    assert intents.available(tmp_path) == []
    write_clinc(tmp_path), write_banking(tmp_path), write_dbpedia(tmp_path)
    assert intents.available(tmp_path) == ["clinc", "banking", "dbpedia"]
    sizes = {
        name: [len(s) for s in intents.load(name, tmp_path, 0).steps] for name in intents.available(tmp_path)
    }
    assert sizes == {"clinc": [2, 2, 2], "banking": [11, 11, 1], "dbpedia": [10, 10]}
    clinc = intents.load("clinc", tmp_path, 0)
    assert {frozenset(s) for s in clinc.steps} == {
        frozenset({"is_red", "is_blue"}),
        frozenset({"is_warm", "is_cold"}),
        frozenset({"is_round", "is_flat"}),
    }
    assert intents.load("dbpedia", tmp_path, 0).train["SportsTeama"][0] == 'train "0", of Club0'


def test_the_order_follows_the_seed_and_no_text_is_in_both_splits(tmp_path: Path) -> None:
    write_clinc(tmp_path), write_banking(tmp_path)
    for name in ("clinc", "banking"):
        found = intents.load(name, tmp_path, 0)
        assert found == intents.load(name, tmp_path, 0)
        assert len({intents.load(name, tmp_path, seed).steps for seed in range(8)}) > 1
        classes = [label for step in found.steps for label in step]
        assert len(set(classes)) == len(classes) and set(found.train) == set(found.test) == set(classes)
        train = {text for texts in found.train.values() for text in texts}
        assert not train & {text for texts in found.test.values() for text in texts}
    assert len(intents.load("clinc", tmp_path, 0).test["is_red"]) == 3
    assert intents.load("banking", tmp_path, 3, 1).steps == intents.load("banking", tmp_path, 3).steps[:1]


def test_labels_are_read_as_words() -> None:
    assert intents.label_text("card_arrival") == "card arrival"
    assert intents.label_text("SportsTeam") == "sports team"
    assert intents.label_text("Refund_not_showing_up") == "refund not showing up"


def test_bad_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no data set 'mnist'; known: clinc, banking, dbpedia"):
        intents.load("mnist", tmp_path, 0)
    with pytest.raises(DataError, match="DBPEDIA_train.csv of dbpedia is not there; it needs DBPEDIA_train"):
        intents.load("dbpedia", tmp_path, 0)
    write_clinc(tmp_path)
    (tmp_path / "clinc_domains.json").write_text(json.dumps({"a": ["is_red", "is_green"]}))
    with pytest.raises(DataError, match="class 'is_green' of clinc lacks training or test texts"):
        intents.load("clinc", tmp_path, 0)
    (tmp_path / "clinc_domains.json").write_text("[1]")
    with pytest.raises(DataError, match="the files of clinc are not as published"):
        intents.load("clinc", tmp_path, 0)


def test_byte_order_marks_take_no_column_away(tmp_path: Path) -> None:
    write_clinc(tmp_path), write_banking(tmp_path)
    wanted = [intents.load(name, tmp_path, 0) for name in ("clinc", "banking")]
    for path in tmp_path.iterdir():
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [intents.load(name, tmp_path, 0) for name in ("clinc", "banking")] == wanted
    path = tmp_path / "banking77_test.csv"
    path.write_text(path.read_text(encoding="utf-8-sig"), encoding="utf-16")
    with pytest.raises(DataError, match=r"banking77_test\.csv is UTF-16, as its byte order mark says"):
        intents.load("banking", tmp_path, 0)
