"""Checkpoints: which are kept, which can be continued, what happens to damaged ones."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from hope_jax.config.experiment import CheckpointConfig, DataConfig, LogConfig
from hope_jax.core.errors import CheckpointError
from hope_jax.models.spec import Architecture
from hope_jax.optim.outer import Optim
from hope_jax.storage.stored import load_checkpoint, resolve
from tests.training.toy import rows_of, toy_config, toy_program, toy_train


def saved_steps(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


def damage(step_dir: Path):
    """Cut every array file in half."""
    for path in (step_dir / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_last_n_and_every_mth_are_kept(tmp_path):
    toy_train(tmp_path, toy_config(checkpoint=CheckpointConfig(every=2, keep_last=2, keep_every=6)))
    assert saved_steps(tmp_path) == [6, 12, 18, 20]


def test_the_last_sealed_checkpoint_stays_until_the_next_one_is_sealed(tmp_path, monkeypatch):
    config = partial(toy_config, checkpoint=CheckpointConfig(every=4, keep_last=1))
    toy_train(tmp_path, config(steps=4))
    monkeypatch.setattr("hope_jax.storage.seal.write", Mock(side_effect=OSError("no space")))
    with pytest.raises(CheckpointError, match="no space"):
        toy_train(tmp_path, config(steps=8))
    monkeypatch.undo()
    assert resolve(tmp_path)[1] == 4
    assert toy_train(tmp_path, config(steps=12))["steps"] == 12
    assert saved_steps(tmp_path) == [8, 12]


def test_changed_shapes_are_refused_with_the_keys_that_changed(tmp_path):
    toy_train(tmp_path, toy_config(steps=8))
    wider = toy_config(steps=8, model=Architecture(dim=7), optim=Optim(lr=1.0))
    with pytest.raises(CheckpointError, match=r"params\.embed is .*model\.dim \(6 -> 7\)"):
        toy_train(tmp_path, wider, toy_program(width=7))
    assert saved_steps(tmp_path) == [8]


def test_changed_data_is_refused(tmp_path):
    toy_train(tmp_path, toy_config(steps=8))
    with pytest.raises(CheckpointError, match=r"data\.seq_len \(2048 -> 64\)"):
        toy_train(tmp_path, toy_config(steps=12, data=DataConfig(seq_len=64)))


def test_another_tokenizer_is_refused(tmp_path, monkeypatch):
    toy_train(tmp_path, toy_config(steps=8))
    monkeypatch.setattr("tests.training.toy.ToyTokenizer.sha256", "other")
    with pytest.raises(CheckpointError, match="another tokenizer"):
        toy_train(tmp_path, toy_config(steps=12))


def test_harmless_changes_are_accepted(tmp_path):
    toy_train(tmp_path, toy_config(steps=8))
    longer = toy_config(steps=12, log=LogConfig(every=1, tensorboard=False), data=DataConfig(prefetch=0))
    assert toy_train(tmp_path, longer)["steps"] == 12
    assert [row["step"] for row in rows_of(tmp_path)] == [1, 4, 8, 9, 10, 11, 12]


def test_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path, caplog):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    toy_train(straight)
    toy_train(broken, toy_config(steps=16))
    damage(broken / "checkpoints" / "16")
    toy_train(broken, toy_config(steps=20))
    assert saved_steps(broken) == [8, 16, 20]
    assert (broken / "checkpoints" / "unreadable-16").is_dir()
    assert "unfinished or damaged" in caplog.text
    a, b = load_checkpoint(straight), load_checkpoint(broken)
    np.testing.assert_array_equal(a.state["params"]["embed"], b.state["params"]["embed"])


def test_checkpoint_without_its_description_falls_back(tmp_path):
    toy_train(tmp_path, toy_config(steps=16))
    (tmp_path / "checkpoints" / "16" / "meta" / "metadata").write_text('{"config": {')
    assert toy_train(tmp_path)["steps"] == 20
    assert (tmp_path / "checkpoints" / "unreadable-16").is_dir()


def test_only_damaged_checkpoints_is_an_error_that_leaves_them(tmp_path):
    toy_train(tmp_path, toy_config(steps=8))
    damage(tmp_path / "checkpoints" / "8")
    with pytest.raises(CheckpointError, match="no checkpoint of .* can be read"):
        toy_train(tmp_path)
    assert saved_steps(tmp_path) == [8]


def test_unfinished_folder_of_a_killed_save_is_ignored(tmp_path):
    toy_train(tmp_path, toy_config(steps=8))
    unfinished = tmp_path / "checkpoints" / "12.orbax-checkpoint-tmp"
    (unfinished / "state").mkdir(parents=True)
    assert toy_train(tmp_path, toy_config(steps=12))["steps"] == 12
    assert not unfinished.exists()


def test_checkpoint_loads_without_its_program(tmp_path):
    config = toy_config(steps=8)
    toy_train(tmp_path, config)
    whole = load_checkpoint(tmp_path)
    assert whole.path == tmp_path / "checkpoints" / "8" and whole.step == 8
    assert set(whole.state) == {"step", "params", "opt_state", "fast", "rng"}
    assert whole.state["rng"].dtype == np.uint32
    assert whole.state["step"].dtype == np.int32 and whole.state["params"]["embed"].shape == (8, 6)
    assert whole.config["model"]["dim"] == 6 and whole.meta["tokenizer_digest"] == "toy"
    part = load_checkpoint(tmp_path / "checkpoints" / "8", ("params",))
    assert set(part.state) == {"params"}
    np.testing.assert_array_equal(part.state["params"]["head"], whole.state["params"]["head"])


@pytest.mark.parametrize("where", ["absent", ".", "checkpoints/8"])
def test_loading_what_is_no_checkpoint_names_the_path(tmp_path, where):
    if where != "absent":
        (tmp_path / where).mkdir(parents=True, exist_ok=True)
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        load_checkpoint(tmp_path / where)


def test_saved_state_is_not_disturbed_by_the_donated_steps_after_it(tmp_path):
    every = toy_config(steps=12, checkpoint=replace(CheckpointConfig(), every=1, keep_last=12))
    toy_train(tmp_path / "a", every)
    toy_train(tmp_path / "b", toy_config(steps=5))
    a, b = load_checkpoint(tmp_path / "a" / "checkpoints" / "5"), load_checkpoint(tmp_path / "b")
    np.testing.assert_array_equal(a.state["params"]["embed"], b.state["params"]["embed"])
