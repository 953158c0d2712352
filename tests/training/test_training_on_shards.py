"""Runs from a mixture of shards: by command, stopped and resumed to the bit, and refused before anything."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hope_jax import cli
from hope_jax.config.experiment import ExperimentConfig
from hope_jax.core.errors import CheckpointError, ConfigError
from hope_jax.core.files import METRICS_FILE, read_rows
from hope_jax.core.program import TrainProgram
from hope_jax.data.corpus import load_documents
from hope_jax.release import model_card
from hope_jax.storage import stored
from hope_jax.storage.stored import load_checkpoint
from hope_jax.training import loop, step, telemetry
from tests.data.shard_folder import shard_documents

ROOT = Path(__file__).parents[2]
MIXTURE = "data.mixture={'scripture': 0.75, 'novel': 0.25}"
SMALL = (
    "model.block_variant=transformer", "train.online_chunk_size=0", "model.dim=16", "model.heads=2",
    "model.num_layers=1", "data.seq_len=32", "data.batch_size=4", "optim.schedule=constant",
    "optim.warmup_steps=0", "eval.batches=2", "eval.generate_tokens=0", "log.every=1",
    "log.tensorboard=false", "checkpoint.every=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Chapters of two books, whose names say so."""
    folder, documents = tmp_path_factory.mktemp("shards"), load_documents("embedded")
    for name, word in (("scripture", "kjv"), ("novel", "austen")):
        own = [d for d in documents if word in d.source][:20]
        shard_documents(folder / name, own, row_tokens=64, origin="two books", licence="public domain")
    return folder


def launch(workdir: Path, *overrides: str, **variables: str) -> subprocess.CompletedProcess[str]:
    flags = [f"--config.{key}" for key in (*SMALL, *overrides)]
    command = [sys.executable, "-m", "hope_jax.launch", "--config=configs/pilot_smoke.py", *flags]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
        **variables,
    }
    return subprocess.run(
        [*command, f"--workdir={workdir}", "--compilation_cache=none"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def rows(workdir: Path) -> list[dict[str, object]]:
    return read_rows(workdir / METRICS_FILE)


def run(workdir: Path, *overrides: str) -> dict[str, object]:
    """What `launch` does, in this process."""
    config = cli.read_config(ROOT / "configs/pilot_smoke.py", (*SMALL, *overrides))
    return loop.run(config, workdir)


def test_a_run_from_shards_is_resumed_to_the_bit(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry, "measure_matmul_peak", lambda: 1e9)
    monkeypatch.setattr(loop, "write_report", lambda workdir: None)
    # Without a schedule the number of steps is not in the program: it is compiled once.
    monkeypatch.setattr(step, "build_program", cache_first(step.build_program))
    source = f"data.source={shards}"
    straight = run(tmp_path / "straight", source, MIXTURE, "train.steps=4")
    assert run(tmp_path / "parts", source, MIXTURE, "train.steps=2")["steps"] == 2
    moved = tmp_path / "moved"
    moved.symlink_to(shards)
    again = run(tmp_path / "parts", f"data.source={moved}", MIXTURE, "train.steps=4", "data.prefetch=0")
    assert_same_end(tmp_path, straight["eval_loss"], again["eval_loss"])
    card = model_card._data({"tokenizer": "embedded"}, load_checkpoint(tmp_path / "parts").meta["sources"])
    assert "| `scripture` | 0.75 |" in card and "| two books | public domain |" in card
    with pytest.raises(CheckpointError, match=r"cannot be continued on other data: data.mixture"):
        other = "data.mixture={'scripture': 0.5, 'novel': 0.5}"
        run(tmp_path / "parts", source, other, "train.steps=6")


def cache_first(build: Callable[..., TrainProgram]) -> Callable[..., TrainProgram]:
    """Always what the first call builds."""
    built: list[TrainProgram] = []

    def first(config: ExperimentConfig, vocab_size: int) -> TrainProgram:
        if not built:
            built.append(build(config, vocab_size))
        return built[0]

    return first


def assert_same_end(folder: Path, straight: object, again: object) -> None:
    """The steps' losses, the last evaluation and the last state of the two runs in a folder."""
    assert straight == again
    assert stored.digest_of(folder / "straight") == stored.digest_of(folder / "parts")
    losses = [[(row["step"], row["loss"]) for row in rows(folder / name)] for name in ("straight", "parts")]
    assert losses[0] == losses[1] and [number for number, _ in losses[0]] == [1, 2, 3, 4]


@pytest.mark.nightly
def test_the_command_trains_and_resumes_from_shards(shards: Path, tmp_path: Path) -> None:
    """One source's folder from the environment; two workers in the resumed part."""
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "scripture").symlink_to(shards / "scripture")
    source, moved = f"data.source={tmp_path / 'below'}", {"HOPE_SHARD_DIR_NOVEL": str(shards / "novel")}
    summaries = []
    for name, *overrides in (
        ("straight", "train.steps=4"),
        ("parts", "train.steps=2"),
        ("parts", "train.steps=4", "data.workers=2"),
    ):
        done = launch(tmp_path / name, source, MIXTURE, *overrides, **moved)
        assert done.returncode == 0, done.stderr
        assert "novel: weight 0.25" in done.stderr
        summaries.append(json.loads(done.stdout.splitlines()[-1]))
    assert_same_end(tmp_path, summaries[0]["eval_loss"], summaries[2]["eval_loss"])


@pytest.mark.parametrize(
    ("overrides", "variables", "code", "message"),
    [
        (["data.mixture={'novel': 0.7}"], {}, 2, "data.mixture: the weights novel=0.7 sum to 0.7, not to 1"),
        (
            [MIXTURE],
            {"HOPE_SHARD_DIR_NOVEL": "/nowhere"},
            1,
            "data.mixture.novel: there is no folder /nowhere",
        ),
    ],
)
def test_what_cannot_be_trained_on_is_refused(
    shards: Path, tmp_path: Path, overrides: list[str], variables: dict[str, str], code: int, message: str
) -> None:
    refused = launch(tmp_path / "w", f"data.source={shards}", *overrides, "train.steps=2", **variables)
    assert (refused.returncode, refused.stdout) == (code, "")
    assert f"error: {message}" in refused.stderr and "Traceback" not in refused.stderr
    assert not (tmp_path / "w" / "checkpoints").exists()


def test_processes_that_would_read_other_rows_are_refused(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As process 1 of a run whose process 0 reads the novel as a folder of its own elsewhere."""
    told: list[object] = []

    def check_same(what: str, value: object) -> None:
        told.append(value)
        if what == "text or tokenizer":
            raise ConfigError(what)

    monkeypatch.setattr(loop.processes, "check_same", check_same)
    for novel in ("novel", "scripture"):
        monkeypatch.setenv("HOPE_SHARD_DIR_NOVEL", str(shards / novel))
        with pytest.raises(ConfigError, match="text or tokenizer"):
            run(tmp_path / novel, f"data.source={shards}", "data.mixture={'novel': 1.0}", "train.steps=2")
    (first, second), (one, two) = told[::2], told[1::2]
    assert first == second and one != two
