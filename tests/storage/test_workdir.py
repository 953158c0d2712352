"""A workdir that two runs want, that is full, or that cannot be written: clear words, nothing lost."""

import contextlib
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hope_jax.cluster.lock import LOCK_FILE, workdir_lock
from hope_jax.config.experiment import LogConfig
from hope_jax.core import files
from hope_jax.core.errors import CheckpointError, ConfigError, WorkdirError
from hope_jax.storage import stored
from tests.training.toy import rows_of, toy_config, toy_program, toy_train

ROOT = Path(__file__).parents[2]
HOLDER = """
import sys, time
from pathlib import Path
from hope_jax.cluster.lock import workdir_lock
with workdir_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@contextlib.contextmanager
def no_room_beyond(size):
    """No file may grow beyond `size` bytes: what a full disk does to files that are being written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def wait_for(path):
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_second_run_is_refused_and_a_killed_one_blocks_nobody(tmp_path):
    toy_train(tmp_path, toy_config(steps=8))
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file() and p.name != LOCK_FILE}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=rf"in use by another run \(process {holder.pid} on"):
            toy_train(tmp_path, toy_config(steps=12))
        after = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file() and p.name != LOCK_FILE}
        assert after == before
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    assert (tmp_path / LOCK_FILE).exists()
    assert toy_train(tmp_path, toy_config(steps=12))["steps"] == 12


def test_a_bundle_is_no_workdir(tmp_path):
    (tmp_path / files.MANIFEST_FILE).write_text("")
    with pytest.raises(ConfigError, match="is a release bundle, which training would spoil"):
        toy_train(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [files.MANIFEST_FILE]


def test_rows_that_will_not_be_written_again_are_kept(tmp_path, caplog):
    toy_train(tmp_path, toy_config(steps=8))
    metrics = tmp_path / files.METRICS_FILE
    whole = metrics.read_bytes()
    first, *rest = whole.splitlines(keepends=True)
    metrics.write_bytes(first + b"\xff no row\n" + b"".join(rest))
    damaged = metrics.read_bytes()
    toy_train(tmp_path, toy_config(steps=12))
    assert (tmp_path / "metrics.jsonl.old").read_bytes() == damaged and "cannot be read" in caplog.text
    (tmp_path / "checkpoints").rename(tmp_path / "elsewhere")
    (tmp_path / "metrics.jsonl.old").unlink()
    metrics.write_bytes(whole)
    toy_train(tmp_path, toy_config(steps=4))
    assert (tmp_path / "metrics.jsonl.old").read_bytes() == whole and "no checkpoint goes with" in caplog.text


def test_a_torn_last_row_is_no_damage(tmp_path):
    toy_train(tmp_path, toy_config(steps=8))
    metrics = tmp_path / files.METRICS_FILE
    metrics.write_bytes(metrics.read_bytes() + b'{"step": 9, "lo')
    toy_train(tmp_path, toy_config(steps=12))
    assert not (tmp_path / "metrics.jsonl.old").exists() and rows_of(tmp_path)[-1]["step"] == 12


def test_a_lock_that_cannot_be_written_is_let_go(tmp_path):
    with no_room_beyond(0), pytest.raises(OSError, match="large"), workdir_lock(tmp_path):
        pass
    with workdir_lock(tmp_path):
        pass


def test_the_lock_ends_with_the_run(tmp_path):
    with pytest.raises(RuntimeError, match="boom"), workdir_lock(tmp_path):
        raise RuntimeError("boom")
    with workdir_lock(tmp_path), pytest.raises(ConfigError, match="in use"), workdir_lock(tmp_path):
        pass


def test_a_holder_that_says_nothing_is_still_a_holder(tmp_path):
    with workdir_lock(tmp_path):
        (tmp_path / LOCK_FILE).write_text("{")
        with pytest.raises(ConfigError, match="in use by another run; nothing"), workdir_lock(tmp_path):
            pass


def test_a_full_disk_ends_the_run_and_the_next_start_goes_on(tmp_path):
    """The second checkpoint does not fit; the first one, and every row before it, are as they were."""
    straight, full = tmp_path / "straight", tmp_path / "full"
    toy_train(straight)
    with contextlib.ExitStack() as stack:

        def fill(number):
            if number == 12:
                wait_for(full / "checkpoints" / "8.sha256")
                stack.enter_context(no_room_beyond(64))

        with pytest.raises((CheckpointError, WorkdirError), match=r"(?i)(too large|written).*[Mm]ake room"):
            toy_train(full, on_step=fill)
    found = stored.verify(full)
    assert found.digest == stored.verify_checkpoint(straight / "checkpoints", 8).digest
    toy_train(full)
    assert rows_of(full) == rows_of(straight)
    assert stored.digest_of(full) == stored.digest_of(straight)


def test_a_row_that_does_not_fit_is_no_traceback(tmp_path):
    with contextlib.ExitStack() as stack:

        def fill(number):
            if number == 3:
                size = (tmp_path / files.METRICS_FILE).stat().st_size
                stack.enter_context(no_room_beyond(size + 10))

        with pytest.raises(WorkdirError, match=r"metrics\.jsonl cannot be written .*make room"):
            toy_train(tmp_path, toy_config(steps=6), on_step=fill)
    toy_train(tmp_path, toy_config(steps=6))
    assert [row["step"] for row in rows_of(tmp_path)] == [1, 4, 6]


def test_a_full_disk_does_not_leave_the_run_waiting_for_tensorboard(tmp_path):
    config = toy_config(steps=20, log=LogConfig(every=1, tensorboard=True))
    with contextlib.ExitStack() as stack:

        def fill(number):
            if number == 3:
                (events,) = (tmp_path / "tb").iterdir()
                assert events.stat().st_size > (tmp_path / files.METRICS_FILE).stat().st_size
                stack.enter_context(no_room_beyond(events.stat().st_size + 10))

        with pytest.raises(WorkdirError, match="cannot be written .*make room"):
            toy_train(tmp_path, config, on_step=fill)
    toy_train(tmp_path, config)
    assert [row["step"] for row in rows_of(tmp_path)] == list(range(1, 21))


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="no file system that is read-only for everyone")
def test_a_read_only_workdir_is_refused_before_anything_is_compiled():
    def never():
        raise AssertionError("the program was started")

    with pytest.raises(WorkdirError, match=r"--workdir=/sys/kernel: .* cannot be written .*make room"):
        toy_train(Path("/sys/kernel"), program=toy_program()._replace(init=never))
