"""Runs from a mixture of shards: by command, stopped and resumed to the bit, and refused before anything."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hope_jax import cli
from hope_jax.data.corpus import load_documents
from hope_jax.errors import CheckpointError
from hope_jax.training import loop, telemetry
from hope_jax.training.files import METRICS_FILE, read_rows
from tests.data.shard_folder import shard_documents

ROOT = Path(__file__).parents[2]
MIXTURE = "data.mixture={'scripture': 0.75, 'novel': 0.25}"
SMALL = (
    "model.dim=16", "model.heads=2", "model.num_layers=1", "data.seq_len=32", "data.batch_size=4",
    "optim.schedule=constant", "optim.warmup_steps=0", "eval.batches=2", "eval.generate_tokens=0",
    "log.every=1", "log.tensorboard=false", "checkpoint.every=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Chapters of two books, whose names say so."""
    folder, documents = tmp_path_factory.mktemp("shards"), load_documents("embedded")
    for name, word in (("scripture", "kjv"), ("novel", "austen")):
        own = [d for d in documents if word in d.source][:20]
        shard_documents(folder / name, own, row_tokens=64)
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
    timed = ("tokens_per_sec", "step_time")
    return [{k: v for k, v in row.items() if k not in timed} for row in read_rows(workdir / METRICS_FILE)]


def run(workdir: Path, *overrides: str) -> dict[str, object]:
    """What `launch` does, in this process."""
    config = cli.read_config(ROOT / "configs/pilot_smoke.py", (*SMALL, *overrides))
    return loop.run(config, workdir)


def test_a_run_from_shards_is_resumed_to_the_bit(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    monkeypatch.setattr(telemetry, "measure_matmul_peak", lambda: 1e9)
    monkeypatch.setattr(loop, "write_report", lambda workdir: None)
    source = f"data.source={shards}"
    straight = launch(tmp_path / "straight", source, MIXTURE, "train.steps=4")
    assert straight.returncode == 0, straight.stderr
    assert json.loads(straight.stdout.splitlines()[-1])["eval_loss"] > 0
    assert "novel: weight 0.25" in straight.stderr
    first = run(tmp_path / "parts", source, MIXTURE, "train.steps=2")
    assert first["steps"] == 2
    again = run(tmp_path / "parts", source, MIXTURE, "train.steps=4", "data.workers=2", "data.prefetch=1")
    assert again["steps"] == 4 and again["unigram_entropy"] > 0
    trained = [{k: v for k, v in row.items() if "eval" not in k} for row in rows(tmp_path / "parts")]
    for one, other in zip(trained, rows(tmp_path / "straight"), strict=True):
        assert {key: other[key] for key in ("step", "loss", "grad_norm")} == {
            key: one[key] for key in ("step", "loss", "grad_norm")
        }
    assert rows(tmp_path / "parts")[-1]["eval_loss"] == rows(tmp_path / "straight")[-1]["eval_loss"]
    with pytest.raises(CheckpointError, match=r"cannot be continued on other data: data.mixture"):
        other = "data.mixture={'scripture': 0.5, 'novel': 0.5}"
        run(tmp_path / "parts", source, other, "train.steps=6")


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
