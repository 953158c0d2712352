"""Several processes train as one does, and end and resume together. Each is `launch` itself."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hope_jax.core.files import METRICS_FILE, read_rows
from hope_jax.storage import stored
from hope_jax.storage.stored import load_checkpoint

ROOT = Path(__file__).parents[2]
SMALL = ("block_variant=hope_attention", "dim=16", "heads=2", "num_layers=1", "vocab_size=1024")
SETTINGS = [
    "--config=configs/mid_stage2_smoke.py",
    *(f"--config.model.{key}" for key in SMALL),
    *(f"--config.data.{key}" for key in ("seq_len=64", "batch_size=4", "mixture={}")),
    *(f"--config.train.{key}" for key in ("steps=24", "online_chunk_size=16", "compute_dtype=float32")),
    *(f"--config.eval.{key}" for key in ("batches=2", "generate_tokens=0")),
    *("--config.checkpoint.every=4", "--config.log.every=1", "--config.log.tensorboard=false"),
]
SLOW = """
import os, sys, time
from hope_jax import cli, launch
from hope_jax.data.batches import TrainIterator
from hope_jax.training import loop, telemetry
from hope_jax.storage.checkpoint import Checkpointer
import jax

pause, of_pipeline = float(sys.argv.pop(1)), TrainIterator.__next__
TrainIterator.__next__ = lambda self: (time.sleep(pause), of_pipeline(self))[1]
telemetry.measure_matmul_peak = lambda: 1e9
loop.write_report = lambda workdir: None
unreadable, of_run = os.environ.get("UNREADABLE"), Checkpointer._read
if unreadable:
    def read(self, step, like):
        if f"{jax.process_index()}:{step}" == unreadable:
            raise NotImplementedError("as Orbax may say of an array")
        return of_run(self, step, like)
    Checkpointer._read = read
cli.run_command(launch.main, leave=launch._leave)
"""
"""`launch`, without peak measurement and report, and with a pause before every step. UNREADABLE: process and
step of a checkpoint that it cannot read."""


def start(workdir, *arguments, pause=0.0, devices=1, **variables):
    """One process of a run."""
    environment = {
        **os.environ,
        **variables,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "PYTHONPATH": str(ROOT),
    }
    cache = f"--compilation_cache={workdir.parent / f'cache{devices}'}"
    command = [sys.executable, "-c", SLOW, str(pause), *SETTINGS, f"--workdir={workdir}", cache, *arguments]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **streams)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start_two(workdir, pause=0.0, **variables):
    join = [f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2", "--gone_after=12"]
    return [start(workdir, *join, f"--process_id={i}", pause=pause, **variables) for i in range(2)]


def finish(processes, codes=None, seconds=400):
    """(stdout, stderr) of each, which ends with the given exit code (0)."""
    try:
        ends = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    found = [process.returncode for process in processes]
    assert found == (codes or [0] * len(processes)), "\n".join(err for _, err in ends)
    return ends


def await_checkpoint(processes, workdir, step):
    deadline = time.monotonic() + 400
    while not (workdir / "checkpoints" / f"{step}.sha256").exists():
        if time.monotonic() > deadline or any(process.poll() is not None for process in processes):
            for process in processes:
                process.kill()
            raise AssertionError("\n".join(process.communicate()[1] for process in processes))
        time.sleep(0.05)


def rows(workdir):
    return [
        {key: row.get(key) for key in ("step", "loss", "grad_norm", "tokens", "eval_loss", "writes")}
        for row in read_rows(workdir / METRICS_FILE)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def together(folder):
    """A run of two processes that nothing interrupted."""
    workdir = folder / "together"
    ends = finish(start_two(workdir))
    return workdir, ends


def test_two_processes_train_as_one_with_two_devices(folder, together):
    """Bit for bit: the sum of two numbers is the same in either order."""
    workdir, alone = together[0], folder / "alone"
    finish([start(alone, devices=2)])
    one, two = rows(alone), rows(workdir)
    assert [row["step"] for row in two] == list(range(1, 25))
    assert two[-1]["eval_loss"] < two[0]["loss"]
    assert one == two
    assert stored.digest_of(alone) == stored.digest_of(workdir)


def test_the_first_process_speaks_for_all(together):
    workdir, ends = together
    (out, err), (other_out, other_err) = ends
    assert set(json.loads(out.splitlines()[-1])) >= {"eval_loss", "tokens_per_sec"}
    assert "resuming" not in err and "step 24/24" in err
    assert "{" not in other_out and "step 24/24" not in other_err
    assert stored.verify(workdir).files > 10


def assert_resumes_to(together, workdir):
    finish(start_two(workdir))
    assert rows(workdir) == rows(together[0])
    assert stored.digest_of(workdir) == stored.digest_of(together[0])


@pytest.mark.nightly
def test_a_signal_stops_all_after_a_step_and_they_resume(folder, together):
    workdir = folder / "signal"
    hosts = f"--hosts=localhost:{free_port()},localhost"
    processes = [start(workdir, hosts, pause=0.2, HOPE_PROCESS_ID=str(i)) for i in range(2)]
    await_checkpoint(processes, workdir, 4)
    processes[1].send_signal(signal.SIGTERM)
    (_, err), (_, other) = finish(processes)
    stopped = load_checkpoint(workdir).step
    for text in (err, other):
        assert f"SIGTERM at process 1: stopped after step {stopped};" in text
    assert json.loads((workdir / "summary.json").read_text())["interrupted"] and 4 < stopped < 20
    assert_resumes_to(together, workdir)


@pytest.mark.nightly
def test_a_killed_worker_stops_the_others_and_they_resume(folder, together):
    workdir = folder / "worker"
    processes = start_two(workdir, 0.2)
    await_checkpoint(processes, workdir, 4)
    processes[1].kill()
    started = time.monotonic()
    (_, err), _ = finish(processes, [1, -signal.SIGKILL])
    assert time.monotonic() - started < 60
    last = err.splitlines()[-1]
    assert last.startswith("error: process 1 of 2 is gone") and "the same command on all hosts" in last
    assert f"goes on from checkpoint {load_checkpoint(workdir).step}" in last
    assert_resumes_to(together, workdir)


@pytest.mark.nightly
def test_a_killed_coordinator_stops_the_others_and_a_kill_of_all_is_survived(folder, together):
    workdir = folder / "coordinator"
    processes = start_two(workdir, 0.2)
    await_checkpoint(processes, workdir, 4)
    processes[0].kill()
    _, (_, err) = finish(processes, [-signal.SIGKILL, 1])
    last = err.splitlines()[-1]
    assert "process 0" in last and "gone" in last and "the same command on all hosts goes on from" in last
    processes = start_two(workdir, 0.2)
    await_checkpoint(processes, workdir, 12)
    for process in processes:
        process.kill()
    finish(processes, [-signal.SIGKILL] * 2)
    assert_resumes_to(together, workdir)


@pytest.mark.nightly
def test_a_checkpoint_that_one_process_cannot_read_is_set_aside_by_all(folder, together):
    """It verifies; both take the one before it, and end where the run that nothing interrupted ended."""
    workdir = folder / "unreadable"
    shutil.copytree(together[0], workdir)
    (_, err), _ = finish(start_two(workdir, UNREADABLE="1:24"))
    assert "24 is unfinished or damaged (process 1: NotImplementedError: as Orbax may say of an array)" in err
    assert "resuming at step 20" in err
    assert (workdir / "checkpoints/unreadable-24").is_dir()
    assert stored.digest_of(workdir) == stored.digest_of(together[0])


def test_a_process_that_never_comes_is_named(folder):
    address = f"127.0.0.1:{free_port()}"
    join = [f"--coordinator={address}", "--num_processes=2", "--process_id=0", "--join_within=1"]
    ((_, err),) = finish([start(folder / "waiting", *join)], [1])
    assert err.splitlines()[-1].startswith(
        f"error: process 1 of 2 cannot be met at {address} within 1 s: start"
    )


def test_tasks_of_a_slurm_job_with_different_configurations_are_refused(folder):
    workdir = folder / "different"
    job = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    job |= {"JAX_COORDINATOR_PORT": str(free_port())}
    tasks = [{**job, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(2)]
    processes = [
        start(workdir, "--distributed=auto", f"--config.train.seed={i}", **task)
        for i, task in enumerate(tasks)
    ]
    (_, err), (_, other) = finish(processes, [2, 2])
    assert "process 1 was started with another configuration than process 0" in other
    assert "process 1 of 2 stopped with an error: process 1 was started with another" in err
