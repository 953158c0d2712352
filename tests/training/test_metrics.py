"""Rows, their files, and the diagnosis of a divergence."""

import json
import threading

import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.config.experiment import ExperimentConfig
from hope_jax.core.errors import DivergenceError
from hope_jax.core.files import cut_back, dump_row, to_json, write_atomic
from hope_jax.core.types import FrozenMapping
from hope_jax.memory.cms import CmsOptions
from hope_jax.memory.levels import Level
from hope_jax.training import metrics as metrics_module
from hope_jax.training.alarms import explain_divergence
from hope_jax.training.metrics import Progress, Recorder


def step_metrics(loss=1.0):
    return {"loss": jnp.float32(loss), "grad_norm": jnp.float32(2), "tokens": jnp.float32(10), "writes": {}}


def make_recorder(rows):
    return Recorder(Progress(), rows.append, lambda step, telemetry: f"bad {step} of {len(telemetry)}")


def test_logging_does_not_wait_for_the_device(monkeypatch):
    ready, real = threading.Event(), metrics_module._finished_at

    def slow(metrics):
        assert ready.wait(10)
        return real(metrics)

    monkeypatch.setattr(metrics_module, "_finished_at", slow)
    rows = []
    recorder = make_recorder(rows)
    for step in range(1, 5):
        recorder.add(step, step_metrics())
    recorder.log(4)  # would hang here if it fetched
    assert not rows
    ready.set()
    recorder.drain()
    recorder.close()
    assert [row["step"] for row in rows] == [4] and rows[0]["tokens"] == 40


def test_rows_come_one_interval_late_and_in_order():
    rows = []
    recorder = make_recorder(rows)
    for step in range(1, 7):
        recorder.add(step, step_metrics(loss=step))
        if step % 2 == 0:
            recorder.log(step)
            assert [row["step"] for row in rows] == list(range(2, step, 2))
    recorder.drain()
    recorder.close()
    assert [float(row["loss"]) for row in rows] == [2, 4, 6]


def test_time_in_a_pause_is_not_throughput(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(metrics_module.time, "perf_counter", lambda: now[0])
    rows = []
    recorder = make_recorder(rows)
    for step in (1, 2):
        recorder.add(step, step_metrics())
        now[0] += 1.0
        with recorder.paused():
            now[0] += 50.0
    recorder.log(2)
    recorder.close()
    assert rows[0]["tokens_per_sec"] == pytest.approx(10.0) and rows[0]["step_time"] == pytest.approx(1.0)
    assert recorder.progress().train_seconds == pytest.approx(102.0)


def test_first_bad_step_of_an_interval_is_named():
    recorder = make_recorder([])
    for step, loss in enumerate([1.0, 1.0, np.inf, np.nan], start=1):
        recorder.add(step, step_metrics(loss))
    with pytest.raises(DivergenceError, match="bad 3 of 3"):
        recorder.drain()
    recorder.close()


def test_json_of_a_row_is_strict_and_short():
    line = dump_row(
        {"a": np.float32(0.1), "b": float("nan"), "c": jnp.array([1.5, np.inf]), "d": np.int32(3)}
    )
    assert line == '{"a": 0.1, "b": null, "c": [1.5, null], "d": 3}\n'
    for value in np.random.default_rng(0).normal(size=100).astype(np.float32):
        assert np.float32(json.loads(json.dumps(to_json(value)))) == value


def test_cut_back_keeps_the_rows_up_to_the_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": null}\n{"step": 4}\n{"step": 8}\n{"step": 1')
    cut_back(path, 4)
    assert path.read_text() == '{"step": 1, "loss": null}\n{"step": 4}\n'


def test_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "config.yaml"
    write_atomic(path, "old")

    def fail(descriptor):
        raise OSError

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError):
        write_atomic(path, "new")
    assert path.read_text() == "old"


def telemetry(**series):
    """Twelve steps: `writes` for level `slow`, the others by name, all constant unless given."""
    rows = []
    for i in range(12):
        row = {"step": i, "loss": 3.0, "grad_norm": 1.0, "lr": 1e-3, "teach_signal_norm": 0.1}
        row |= {name: values[i] for name, values in series.items() if name != "writes"}
        row["writes"] = {"slow": {"grad_norm": [1.0, series.get("writes", [1.0] * 12)[i]]}}
        rows.append(row)
    return rows


GROWTH = [2.0**i for i in range(11)] + [np.nan]


@pytest.mark.parametrize(
    ("series", "cause", "remedy"),
    [
        ({"writes": GROWTH, "grad_norm": GROWTH}, "writes of slow", "cms.levels.slow.lr"),
        ({"teach_signal_norm": GROWTH, "grad_norm": GROWTH}, "teach_signal_norm", "teach.scale"),
        ({"grad_norm": GROWTH}, "grad_norm grew", "optim.lr"),
        ({"loss": GROWTH}, "loss grew", "optim.warmup_steps"),
        ({}, "nothing grew", "train.compute_dtype"),
    ],
)
def test_likely_cause_is_what_grew_first_in_the_chain(series, cause, remedy):
    config = ExperimentConfig(cms=CmsOptions(FrozenMapping({"slow": Level(16, 1e-3)})))
    message = explain_divergence(11, telemetry(**series), config, None)
    assert cause in message and remedy in message and "No checkpoint" in message
