"""The runs and the bundle that these tests share, made once; a test changes a `copy`."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from hope_jax.release import bundle
from hope_jax.storage import stored
from tests.release.bundles import Runs, one_revision, save_run


@pytest.fixture(scope="module", autouse=True)
def same_revision() -> Iterator[None]:
    with one_revision():
        yield


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("runs")
    evals = root / "some evals"
    (evals / "deep").mkdir(parents=True)
    (evals / "deep" / "niah.json").write_text('{"accuracy": 0.5}')
    (evals / "log.txt").write_text("not taken along")
    with one_revision():
        main = save_run(root / "main", root / "own.model")
        return Runs(main, save_run(root / "titan", root / "other.model", block_variant="titan"), evals)


@pytest.fixture(scope="session")
def made(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "bundle"
    with one_revision():
        bundle.write(out, runs.main, [runs.titan], [runs.evals])
    return out


@pytest.fixture(scope="session")
def loaded(made: Path) -> stored.LoadedCheckpoint:
    return stored.load_checkpoint(made)


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """A bundle to be damaged."""
    return Path(shutil.copytree(made, tmp_path / "bundle"))
