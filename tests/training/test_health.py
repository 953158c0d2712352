"""Alarms: what they fire at, whom they name, and what a run does with them."""

import json
import logging
import math

import jax.numpy as jnp
import pytest

from hope_jax.config.experiment import (
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    ExperimentConfig,
    LogConfig,
    TrainConfig,
)
from hope_jax.core.errors import AlarmError
from hope_jax.core.files import ALARM_FILE, METRICS_FILE
from hope_jax.core.types import FrozenMapping
from hope_jax.memory.cms import CmsOptions
from hope_jax.memory.levels import Level, MemoryOptions
from hope_jax.models.spec import Architecture
from hope_jax.storage.stored import load_checkpoint
from hope_jax.training import alarms
from hope_jax.training.loop import run
from tests.training.toy import VOCAB, rows_of, toy_config, toy_program, toy_train

CHANCE = math.log(VOCAB)
LEVELS = FrozenMapping({"fast": Level(16, 1e-3), "slow": Level(16, 1e-3)})


def config_of(**memory):
    return ExperimentConfig(
        model=Architecture(vocab_size=VOCAB), cms=CmsOptions(LEVELS), memory=MemoryOptions(**memory)
    )


def level(write=0.01, delta=0.1, hits=0.0, applied=4.0):
    """Two layers; the second has the given numbers, a mean over contexts."""
    return {
        "updates_applied": [4.0, applied],
        "write_norm": [0.001, write],
        "delta_norm": [0.01, delta],
        "write_clip_hits": [0.0, hits],
        "delta_clip_hits": [0.0, 0.0],
    }


def judged(loss, plain, writes=None, **memory):
    evaluated = {"eval_loss": loss, "eval_loss_no_writes": plain}
    return alarms.eval_alarm(evaluated, writes or {"fast": level()}, config_of(**memory))


def test_no_alarm_while_writes_do_no_harm():
    assert judged(1.0, 1.0 + alarms.MARGIN) is None
    assert judged(1.0 + 0.9 * alarms.MARGIN, 1.0) is None
    assert judged(CHANCE + 0.9 * alarms.MARGIN, CHANCE) is None
    assert judged(None, None) is None


def test_alarm_names_the_losses_the_level_and_the_key():
    text = judged(43.21, 1.234, {"fast": level(hits=8.0), "slow": level(write=0.02)})
    for part in (
        "43.21 with writes",
        "1.234 without",
        f"ln V {CHANCE:.4g}",
        "Suspect: fast",
        "2 active bounds",
    ):
        assert part in text
    assert "cms.levels.fast.lr or memory.write_clip (now 0.02)" in text


def test_without_bounds_the_largest_writes_are_suspect_and_the_bounds_the_remedy():
    writes = {"fast": level(), "slow": level(write=70.0, delta=900.0), "idle": level(write=1e9, applied=0.0)}
    text = judged(9.0, 1.0, writes, write_clip=0.0, delta_clip=0.0)
    assert "Suspect: slow" in text and "up to 70" in text and "all writes 900" in text
    assert "memory.write_clip=0.02 and memory.delta_clip=0.5" in text
    writes["fast"] = level(write=math.nan)
    assert "Suspect: fast" in judged(math.nan, 1.0, writes, write_clip=0.0)


def test_levels_that_have_no_bounds_are_mended_by_their_rate():
    assert "self_modifying_titans.eta_scale (now 0.001)" in judged(9.0, 1.0, {"generators": level(write=3.0)})
    assert "titan.level.lr" in judged(9.0, 1.0, {"titan": level(write=3.0)})


def test_a_model_that_is_lost_without_its_writes_too_is_not_their_fault():
    text = judged(CHANCE + 1, CHANCE + 1)
    assert "with writes and without" in text and "optim.lr" in text


@pytest.mark.parametrize(
    ("losses", "alarmed"),
    [
        ([3.0, 3.0, 3.0, 3.0, 3.0], []),
        ([1.0, 3.0, 3.0, 1.0, 3.0, 3.0], []),
        ([1.0, 2.1, 2.1, 2.1, 2.1], []),
        ([1.0, 3.0, 3.0, 3.0, 3.0, 1.0], [4, 5]),
        ([1.0, None, None, None], [4]),
    ],
)
def test_training_loss_above_chance_for_several_rows(losses, alarmed):
    """Only where it had been below; a guard that resumes at any row says the same."""
    rows = [{"step": i, "loss": loss, "writes": {}} for i, loss in enumerate(losses, start=1)]
    seen = alarms.Guard(config_of())
    marked = [seen.row(row if row["loss"] else {**row, "loss": math.nan}) for row in rows]
    assert [row["step"] for row in marked if row["alarm"]] == alarmed
    for start in range(len(rows)):
        again = alarms.Guard(config_of(), rows[:start])
        assert [bool(again.row(row)["alarm"]) for row in rows[start:] if row["loss"]] == [
            row["step"] in alarmed for row in rows[start:] if row["loss"]
        ]


def harmful(program):
    """The program whose held-out loss with writes is 40 nats above that without, from step 10 on; before, a
    little below."""

    def eval_step(state, batch):
        sums = program.eval_step(state, batch)
        harm = jnp.where(state.step >= 10, 40.0, -0.1) * sums["tokens"]
        return {**sums, "loss_sum": sums["loss_sum_no_writes"] + harm}

    return program._replace(eval_step=eval_step)


def alarm_config(alarm):
    return toy_config(eval=EvalConfig(every=5, generate_tokens=0, alarm=alarm))


def test_stop_saves_a_checkpoint_and_the_run_can_go_on(tmp_path):
    with pytest.raises(AlarmError, match=r"after step 10.*with writes.*continues from .*checkpoints/10"):
        toy_train(tmp_path, alarm_config("stop"), harmful(toy_program()))
    assert int(load_checkpoint(tmp_path / "checkpoints" / "10").state["step"]) == 10
    assert "with writes" in (tmp_path / ALARM_FILE).read_text()
    rows = [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text().splitlines()]
    assert [row["step"] for row in rows if row["alarm"]] == [10]
    summary = toy_train(tmp_path, alarm_config("off"), harmful(toy_program()))
    assert summary["steps"] == 20 and not summary["interrupted"] and not (tmp_path / ALARM_FILE).exists()
    assert [row["step"] for row in rows_of(tmp_path) if row["alarm"]] == [10]


def test_warn_goes_on_loudly(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "hope_jax.training"):
        toy_train(tmp_path, alarm_config("warn"), harmful(toy_program()))
    assert [row["step"] for row in rows_of(tmp_path) if row["alarm"]] == [10, 15, 20]
    assert sum("ALARM after step" in record.message for record in caplog.records) == 3


def blown_up(alarm, **memory):
    """A real model of one layer, whose inner rate is four orders of magnitude too high. The reference style
    starts with an embedding of unit variance: what writes spoil shows at once."""
    return ExperimentConfig(
        model=Architecture(
            style="reference",
            vocab_size=1024,
            dim=16,
            num_layers=1,
            heads=2,
        ),
        cms=CmsOptions(FrozenMapping({"cms_fast": Level(4, 1e4)})),
        memory=MemoryOptions(**memory),
        train=TrainConfig(steps=2, online_chunk_size=8),
        data=DataConfig(seq_len=32, batch_size=2),
        eval=EvalConfig(every=1, batches=1, generate_tokens=0, alarm=alarm),
        checkpoint=CheckpointConfig(every=0),
        log=LogConfig(tensorboard=False),
    )


@pytest.mark.nightly
def test_a_run_without_bounds_blows_up_and_the_bounds_keep_it(tmp_path):
    with pytest.raises(AlarmError, match=r"after step 1, .*ln V 6\.931") as error:
        run(blown_up("stop", write_clip=0.0, delta_clip=0.0), tmp_path / "off")
    (without,) = rows_of(tmp_path / "off")
    assert without["alarm"] in str(error.value) and without["writes"]["cms_fast"]["delta_norm"][0] > 10
    run(blown_up("warn"), tmp_path / "on")
    bounded = rows_of(tmp_path / "on")[0]
    written = bounded["writes"]["cms_fast"]
    assert written["write_clip_hits"][0] > 0 and written["write_norm"][0] <= 0.02 * 1.0001
    assert written["delta_norm"][0] <= 0.5 * 1.0001
    harm, bounded_harm = (row["eval_loss"] - row["eval_loss_no_writes"] for row in (without, bounded))
    assert abs(harm) > 1 and abs(bounded_harm) < abs(harm) / 4
