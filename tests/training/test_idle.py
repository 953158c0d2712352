"""Idle memories: what is counted, when the alarm of their own kind is raised, and what it names."""

import json
import logging
from dataclasses import replace

import jax.numpy as jnp
import pytest

from hope_jax.config.experiment import (
    ExperimentConfig,
    TrainConfig,
)
from hope_jax.core.files import ALARM_FILE, METRICS_FILE
from hope_jax.learning.teach import Teach, TeachSchedule
from hope_jax.memory.cms import CmsOptions
from hope_jax.memory.levels import Level, MemoryOptions
from hope_jax.memory.titan import TitanOptions
from hope_jax.models.spec import Architecture
from hope_jax.optim.outer import Optim
from hope_jax.training import alarms
from tests.training.test_health import alarm_config
from tests.training.toy import toy_program, toy_train, without_memories

LEVELS = {"fast": Level(16, 0.1), "slow": Level(16, 1e-3)}
PERSISTENT = {
    "train": TrainConfig(algorithm_mode="two_pass"),
    "memory": MemoryOptions(scope="batch", lifetime="persistent"),
}


def config_of(variant="hope_attention", levels=LEVELS, threshold=0.02, scale=0.1, titan=None, **sections):
    memory = replace(sections.pop("memory", MemoryOptions()), surprise_threshold=threshold)
    return ExperimentConfig(
        model=Architecture(block_variant=variant, vocab_size=8),
        cms=CmsOptions(levels),
        titan=TitanOptions(titan or Level(8, 1e-3)),
        teach=Teach(scale=scale),
        memory=memory,
        **sections,
    )


def sums(share, surprise=0.004, periods=40.0):
    """Of two layers; the second is surprised twice as much."""
    return {
        "periods": [periods, periods],
        "updates_applied": [share * periods, share * periods],
        "surprise_value": [surprise * periods, 2 * surprise * periods],
    }


def alarm(found, config=None, plain=2.0, loss=1.9, step=100, training=None):
    evaluated = {
        "eval_loss": loss,
        "eval_loss_no_writes": plain,
        "eval_writes": alarms.written(found),
    }
    return alarms.idle_alarm(step, evaluated, training or {}, config or config_of())


def test_shares_are_of_the_periods_that_ended_in_all_levels_and_layers():
    never = {"periods": [0.0, 0.0], "updates_applied": [0.0, 0.0], "surprise_value": [0.0, 0.0]}
    found = alarms.written({"fast": sums(1.0, periods=30.0), "slow": sums(0.2, periods=10.0), "ultra": never})
    assert set(found) == {"fast", "slow"}
    assert found["slow"]["periods_written"] == [0.2, 0.2]
    assert found["slow"]["surprise_value"] == pytest.approx([0.004, 0.008])
    assert alarms.share_of_all(found) == pytest.approx((30 + 2) / 40)
    assert alarms.share_of_all({}) is None and alarms.share_of_all(alarms.written({"ultra": never})) is None
    step = {
        "fast": {**sums(0.5), "surprise_value": [0.1, 0.2], "grad_norm": [1.0, 1.0]},
        "old": {"periods": [1.0]},
    }
    assert alarms.written(step, means=True) == alarms.written(
        {"fast": {**sums(0.5), "surprise_value": [4.0, 8.0]}}
    )


def test_levels_that_hardly_write_are_named_with_threshold_and_surprise():
    text = alarm({"fast": sums(0.3), "slow": sums(0.02)})
    assert text.startswith(alarms.IDLE) and alarms.is_idle(text)
    for part in ("slow 2.0%", "0.004 to 0.008", "surprise_threshold=0.02", "set it to None", "2 without"):
        assert part in text, text
    assert "fast" not in text
    assert alarm({"fast": sums(alarms.SHARE), "slow": sums(1.0)}) is None


def test_writes_that_change_nothing_are_named_with_their_rates():
    text = alarm({"fast": sums(1.0), "slow": sums(1.0)}, plain=1.9 + 0.9 * alarms.EFFECT)
    assert text.startswith(alarms.IDLE) and "change nothing" in text
    for part in (
        "fast, slow",
        "cms.levels.fast.lr (now 0.1)",
        "cms.levels.slow.lr (now 0.001)",
        "teach.scale (now 0.1)",
    ):
        assert part in text, text
    for other in (1.9 + 1.1 * alarms.EFFECT, 1.9 - 1.1 * alarms.EFFECT):
        assert alarm({"fast": sums(1.0), "slow": sums(1.0)}, plain=other) is None
    assert alarm({"fast": sums(1.0)}, plain=0.002, loss=0.001) is None
    one_chunk = config_of(train=TrainConfig(online_chunk_size=2048))
    assert "lower train.online_chunk_size (now 2048)" in alarm({"fast": sums(1.0)}, one_chunk, plain=1.9)


@pytest.mark.parametrize(
    ("config", "found", "plain"),
    [
        (config_of(levels={"fast": Level(16, 0.0)}), {"fast": sums(0.0)}, 1.9),
        (config_of(scale=0.0), {"fast": sums(0.0), "slow": sums(0.0)}, 1.9),
        (config_of(variant="transformer"), {}, None),
        (config_of(levels={}), {}, None),
        (config_of(train=TrainConfig(algorithm_mode="two_pass")), {}, None),
        (config_of(threshold=None), {"fast": sums(0.0)}, 2.0),
    ],
    ids=["rate", "scale", "none", "no level", "two_pass", "ungated"],
)
def test_what_is_intended_raises_nothing(config, found, plain):
    """Nor does a level of which only few periods hold a token with a signal."""
    assert alarm(found, config, plain=plain, training={"fast": sums(0.0)}) is None


def test_nothing_is_said_before_the_warm_ups_are_over():
    late = replace(
        config_of(optim=Optim(warmup_steps=50)),
        teach=Teach(schedule=TeachSchedule(warmup_steps=99)),
    )
    assert alarm({"fast": sums(0.0)}, late, step=99) is None
    assert alarm({"fast": sums(0.0)}, late, step=100) is not None
    assert alarm({"fast": sums(0.0)}, config_of(optim=Optim(warmup_steps=101)), step=100) is None


def test_a_persistent_memory_is_judged_by_what_training_writes():
    text = alarm({}, config_of(**PERSISTENT), training={"fast": {**sums(0.0), "surprise_value": [0.1, 0.2]}})
    assert "fast 0.0%" in text and "0.1 to 0.2" in text


def test_self_modifying_memories_are_not_gated_but_can_change_nothing():
    config = config_of(variant="hope_selfmod", levels={"cms": Level(16, 0.0)})
    found = {"generators": sums(1.0), "memory": sums(1.0), "cms": sums(0.0)}
    assert alarm(found, config) is None
    text = alarm(found, config, plain=1.9)
    assert (
        "generators, memory change nothing" in text and "self_modifying_titans.eta_scale (now 0.001)" in text
    )
    assert "teach.scale" not in text and "cms" not in text


def test_titan_and_the_inits_of_nested_levels_have_rates_of_their_own():
    config = config_of(variant="hope_hybrid", titan=Level(16, 0.0))
    assert alarm({"titan": sums(0.0), "fast": sums(1.0)}, config) is None
    assert "titan 0.0%" in alarm({"titan": sums(0.0)}, config_of(variant="hope_hybrid"))
    assert "fast.init 0.0%" in alarm({"fast.init": sums(0.0)})


def test_harm_comes_before_idleness_which_never_ends_a_run():
    config = alarm_config("stop")
    ours = config_of()
    config = replace(config, model=ours.model, cms=ours.cms, memory=ours.memory)
    guard = alarms.Guard(config, [{"step": 1, "loss": 1.0}])
    evaluated = {
        "eval_loss": 1.9,
        "eval_loss_no_writes": 1.9,
        "eval_writes": alarms.written({"fast": sums(0.0)}),
    }
    text = guard.evaluated(1000, evaluated, {})
    assert alarms.is_idle(text) and guard.stop is None
    for number in range(2, 5):  # the loss is above ln V three times: no idleness may hide that
        row = guard.row({"step": number, "loss": 9.0, "writes": {}, "alarm": text})
    assert "training loss" in row["alarm"] and guard.stop == row["alarm"]
    harm = alarms.Guard(config).evaluated(1000, {**evaluated, "eval_loss": 9.0}, {})
    assert "do harm" in harm and not alarms.is_idle(harm)


def blocked(program):
    """The program whose gate stays shut in evaluations."""

    def eval_step(state, batch):
        sums_ = program.eval_step(state, batch)
        fast = sums_["writes"]["cms_fast"]
        shut = {**fast, "updates_applied": jnp.zeros_like(fast["updates_applied"])}
        return {**sums_, "writes": {"cms_fast": shut}}

    return program._replace(eval_step=eval_step)


def test_a_run_says_what_was_written_in_rows_log_summary_and_report(tmp_path, caplog, needs_report):
    with caplog.at_level(logging.INFO, "hope_jax.training"):
        summary = toy_train(tmp_path, alarm_config("stop"))
    assert summary["periods_written"] == pytest.approx((2 + 3) / 8)
    assert summary["eval_loss_no_writes"] > summary["eval_loss"]
    row = json.loads((tmp_path / METRICS_FILE).read_text().splitlines()[-1])
    assert row["eval_writes"]["cms_fast"]["periods_written"] == [0.5, 0.75] and row["alarm"] is None
    lines = [record.message for record in caplog.records if "eval loss" in record.message]
    assert "without writes" in lines[-1] and "62% of periods written (surprise_threshold=None)" in lines[-1]
    page = (tmp_path / "report.html").read_text()
    assert "62.5%" in page and "nats by memory writes" in page and "Effect of writes on held-out text" in page


def test_a_run_with_idle_memories_goes_on_and_its_report_says_so(tmp_path, needs_report):
    config = alarm_config("stop")
    config = replace(config, memory=replace(config.memory, surprise_threshold=0.02))
    summary = toy_train(tmp_path, config, blocked(toy_program()))
    assert summary["steps"] == 20 and summary["periods_written"] == 0.0
    assert not (tmp_path / ALARM_FILE).exists()
    assert alarms.IDLE in (tmp_path / "report.html").read_text()
    assert toy_train(tmp_path / "off", replace(config, eval=alarm_config("off").eval), blocked(toy_program()))
    assert alarms.IDLE not in (tmp_path / "off" / METRICS_FILE).read_text()


def test_without_memories_there_is_nothing_to_say(tmp_path):
    summary = toy_train(tmp_path, alarm_config("warn"), without_memories(toy_program()))
    assert summary["eval_loss"] is not None
    assert summary["eval_loss_no_writes"] is None and summary["periods_written"] is None
    assert all(
        json.loads(line)["alarm"] is None for line in (tmp_path / METRICS_FILE).read_text().splitlines()
    )
