"""The loop: resuming, stopping, evaluating, diverging."""

import gzip
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import jax
import numpy as np
import pytest
import yaml
from jax.profiler import ProfileData

from hope_jax.config.experiment import CheckpointConfig, LogConfig, TrainConfig
from hope_jax.core.errors import ConfigError, DivergenceError
from hope_jax.core.files import METRICS_FILE, as_plain
from hope_jax.storage.stored import load_checkpoint
from tests.training.toy import Interrupt, poisoned, rows_of, toy_batch, toy_config, toy_program, toy_train


def arrays(workdir):
    loaded = load_checkpoint(workdir)
    return loaded.step, loaded.state, loaded.data


def assert_same_end(workdir, other):
    (step, state, data), (other_step, other_state, other_data) = arrays(workdir), arrays(other)
    assert (step, data) == (other_step, other_data)
    assert jax.tree.structure(state) == jax.tree.structure(other_state)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(other_state), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run of 20 steps that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("straight")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hope_jax.training.loop.write_report", lambda workdir: None)
        summary = toy_train(workdir)
    return workdir, summary


def test_run_interrupted_by_a_signal_and_resumed_equals_an_uninterrupted_one(straight, tmp_path):
    def send(number):
        if number == 13:
            os.kill(os.getpid(), signal.SIGTERM)

    first = toy_train(tmp_path, on_step=send)
    assert first["interrupted"] and first["steps"] == 13
    assert load_checkpoint(tmp_path).step == 13
    second = toy_train(tmp_path)
    assert not second["interrupted"] and second["steps"] == 20
    assert rows_of(tmp_path) == rows_of(straight[0])
    assert_same_end(tmp_path, straight[0])


def test_run_that_crashed_between_checkpoints_cuts_its_metrics_back_and_ends_the_same(straight, tmp_path):
    def crash(number):
        if number == 15:
            raise Interrupt

    with pytest.raises(Interrupt):
        toy_train(tmp_path, on_step=crash)
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"step": 14, "loss": 99.0}\n{"step": 16, "lo')
    toy_train(tmp_path)
    assert rows_of(tmp_path) == rows_of(straight[0])
    assert_same_end(tmp_path, straight[0])


def test_finished_run_started_again_takes_no_step_and_reports_the_same(straight):
    workdir, summary = straight

    def refuse(number):
        raise AssertionError("a step was taken")

    again = toy_train(workdir, on_step=refuse)
    for key in ("eval_loss", "unigram_entropy", "tokens", "tokens_per_sec", "steps"):
        assert again[key] == summary[key]


def test_rows_hold_losses_rates_and_writes(straight):
    workdir, summary = straight
    rows = [json.loads(line) for line in (workdir / METRICS_FILE).read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 4, 8, 10, 12, 16, 20]
    for row in rows:
        assert {
            "loss",
            "tokens",
            "tokens_per_sec",
            "step_time",
            "grad_norm",
            "lr",
            "teach_signal_norm",
        } <= set(row)
        assert row["writes"]["cms_slow"]["updates_applied"] == [3.0, 3.0]
        assert row["writes"]["cms_fast"]["surprise_value"] == [None, None]
        assert row["tokens"] == 22 * row["step"]
    assert [row["step"] for row in rows if "eval_loss" in row] == [10, 20]
    assert rows[-1]["eval_loss"] == summary["eval_loss"] < rows[0]["loss"]
    assert rows[0]["tokens_per_sec"] is None and rows[1]["tokens_per_sec"] > 0


def test_unigram_entropy_is_of_the_evaluated_targets(straight):
    targets = np.concatenate([toy_batch(n).targets.ravel() for n in (1000, 1001)])
    counts = np.bincount(targets[targets >= 0])
    shares = counts[counts > 0] / counts.sum()
    assert straight[1]["unigram_entropy"] == pytest.approx(-(shares * np.log(shares)).sum(), rel=1e-12)
    assert straight[1]["perplexity"] == pytest.approx(math.exp(straight[1]["eval_loss"]))


def test_resolved_config_is_plain_yaml(straight):
    saved = yaml.safe_load((straight[0] / "config.yaml").read_text())
    assert saved == as_plain(toy_config())


def test_resume_never_refuses_a_used_workdir_and_changes_nothing(straight):
    workdir = straight[0]
    before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    with pytest.raises(ConfigError, match="train.resume=never"):
        toy_train(workdir, toy_config(train=TrainConfig(steps=30, resume="never")))
    assert {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()} == before


def test_resume_never_accepts_an_empty_workdir(tmp_path):
    summary = toy_train(tmp_path / "new", toy_config(train=TrainConfig(steps=2, resume="never")))
    assert summary["steps"] == 2


def test_step_offset_numbers_the_first_step_and_the_state(tmp_path):
    summary = toy_train(tmp_path, toy_config(train=TrainConfig(steps=105, step_offset=100)))
    assert summary["steps"] == 105
    assert [row["step"] for row in rows_of(tmp_path)] == [101, 104, 105]
    loaded = load_checkpoint(tmp_path)
    assert loaded.state["step"] == 105 and loaded.data == {"next_batch": 105}


def test_step_is_compiled_once(tmp_path):
    step = jax.jit(toy_program().train_step, donate_argnums=0)
    program = toy_program()._replace(train_step=step)
    toy_train(tmp_path, toy_config(train=TrainConfig(steps=6, step_offset=2)), program)
    assert step._cache_size() == 1


def test_steps_not_beyond_the_offset_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="train.step_offset=7"):
        toy_train(tmp_path, toy_config(train=TrainConfig(steps=7, step_offset=7)))


def test_non_finite_loss_stops_with_step_checkpoint_and_cause(tmp_path):
    with pytest.raises(DivergenceError) as caught:
        toy_train(tmp_path, program=poisoned(toy_program(), loss_at=15))
    message = str(caught.value)
    assert "step 15:" in message and "loss nan" in message
    assert str(tmp_path / "checkpoints" / "8") in message
    assert "writes of cms_fast" in message and "cms.levels.cms_fast.lr" in message
    assert load_checkpoint(tmp_path).step == 8
    assert all(row["loss"] is not None and row["step"] < 15 for row in rows_of(tmp_path))


def test_state_that_is_not_finite_is_never_saved(tmp_path):
    with pytest.raises(DivergenceError, match=r"params\.embed is not finite after step 16"):
        toy_train(tmp_path, program=poisoned(toy_program(), params_at=16))
    assert load_checkpoint(tmp_path).step == 8


def test_long_log_interval_still_finds_a_divergence_soon(tmp_path):
    quiet = LogConfig(every=10_000, tensorboard=False)
    config = toy_config(steps=500, log=quiet, checkpoint=CheckpointConfig(every=0))
    taken = []
    with pytest.raises(DivergenceError, match="step 3:"):
        toy_train(tmp_path, config, poisoned(toy_program(), loss_at=3), on_step=taken.append)
    assert len(taken) < 200


def test_profile_leaves_a_trace_that_viewers_read(tmp_path):
    """Where TensorBoard and xprof look for it, and as the JSON that Perfetto opens."""
    toy_train(tmp_path, toy_config(train=TrainConfig(steps=8, profile=True)))
    folder = tmp_path / "profile" / "plugins" / "profile"
    (spans,), (events,) = folder.glob("*/*.xplane.pb"), folder.glob("*/*.trace.json.gz")
    planes = {plane.name: plane for plane in ProfileData.from_file(str(spans)).planes}
    host = [event.name for line in planes["/host:CPU"].lines for event in line.events]
    assert host.count("train_step") == 3
    trace = json.loads(gzip.decompress(events.read_bytes()))["traceEvents"]
    steps = [event for event in trace if event.get("name") == "train_step"]
    assert sorted(int(event["args"]["step_num"]) for event in steps) == [3, 4, 5]
    assert all(event["ph"] == "X" and event["dur"] > 0 for event in steps)


def test_tensorboard_events_hold_the_scalars(tmp_path):
    toy_train(tmp_path, toy_config(steps=4, log=LogConfig(every=2)))
    (events,) = (tmp_path / "tb").iterdir()
    assert b"writes/cms_slow/updates_applied" in events.read_bytes()


def test_missing_wandb_is_a_configuration_error(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"log\.wandb.*pip install wandb"):
        toy_train(tmp_path, toy_config(log=LogConfig(wandb=True)))


def test_wandb_gets_every_row(tmp_path, monkeypatch):
    logged, asked = {}, {}
    run = SimpleNamespace(
        log=lambda row, step: logged.update({step: row}), finish=lambda: asked.update(end=True)
    )
    package = ModuleType("wandb")
    package.init = lambda **given: (asked.update(given), run)[1]
    package.__spec__ = ModuleSpec("wandb", None)
    monkeypatch.setitem(sys.modules, "wandb", package)
    log = LogConfig(every=2, tensorboard=False, wandb=True, wandb_project="mine")
    toy_train(tmp_path, toy_config(steps=4, log=log))
    assert list(logged) == [row["step"] for row in rows_of(tmp_path)]
    assert all(isinstance(row["loss"], float) for row in logged.values())
    assert asked["project"] == "mine" and asked["config"]["train"]["steps"] == 4 and asked["end"]


SCRIPT = """
    import sys, time
    from pathlib import Path
    from hope_jax.training import loop
    from tests.training.toy import toy_config, toy_train
    loop.write_report = lambda workdir: None

    def slow(number):
        (Path(sys.argv[1]) / "step").write_text(str(number))
        time.sleep(float(sys.argv[2]))

    toy_train(Path(sys.argv[1]), toy_config(steps=100_000), on_step=slow)
"""


def start_process(workdir, seconds):
    """A run whose steps take `seconds`."""
    workdir.mkdir()
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(workdir), str(seconds)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"},
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_step(process, workdir, wanted):
    marker = workdir / "step"
    deadline = time.monotonic() + 300
    while not (marker.exists() and int(marker.read_text() or 0) >= wanted):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()  # while it lives its stderr has no end
            raise AssertionError(process.stderr.read())
        time.sleep(0.05)


def test_sigterm_saves_and_exits_0_and_a_second_one_exits_at_once(tmp_path):
    polite, stuck = tmp_path / "polite", tmp_path / "stuck"
    processes = [start_process(polite, 0.02), start_process(stuck, 60)]
    try:
        wait_for_step(processes[0], polite, 3)
        wait_for_step(processes[1], stuck, 1)
        processes[0].send_signal(signal.SIGTERM)
        processes[1].send_signal(signal.SIGINT)
        processes[1].stderr.readline()  # the first signal's message
        processes[1].send_signal(signal.SIGTERM)
        assert processes[0].wait(30) == 0
        assert processes[1].wait(10) == 128 + signal.SIGTERM
    finally:
        for process in processes:
            process.kill()
            process.stderr.close()
    assert json.loads((polite / "summary.json").read_text())["interrupted"]
    assert load_checkpoint(polite).step >= 3
    assert not any((stuck / "checkpoints").iterdir())
