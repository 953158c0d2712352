"""The command that evaluates, in this process, on small checkpoints."""

import logging
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from absl.testing import flagsaver

from hope_jax import cli, compilation_cache
from hope_jax.evals.suite import __main__ as suite
from tests.checkpoints import save_small, small_config
from tests.evals import made_up
from tests.evals.made_up import Counter
from tests.evals.suite.running import Command, Done


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Workdirs `one` and `other`, of other seeds."""
    folder = tmp_path_factory.mktemp("runs")
    save_small(folder / "one", small_config())
    save_small(folder / "other", small_config(train={"seed": 1}))
    return folder


@pytest.fixture
def counter() -> Counter:
    return Counter()


@pytest.fixture
def command(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    counter: Counter,
    runs: Path,
    tmp_path: Path,
) -> Iterator[Command]:
    """`python -m hope_jax.evals.suite ARGUMENTS` in this process, where `texts` and `plain` are all
    evaluations; RUNS and OUT stand for folders."""
    ours = logging.getLogger("hope_jax")
    before = ours.handlers, ours.propagate, ours.level
    monkeypatch.setattr(compilation_cache, "use", lambda: None)
    monkeypatch.setattr(suite, "compilation_cache", compilation_cache)
    modules = {
        "texts": made_up.texts_module(counter),
        "plain": made_up.texts_module(counter, "plain", draws=False),
    }
    made_up.register(monkeypatch, modules, {})

    def run(arguments: str) -> Done:
        line = arguments.replace("RUNS", str(runs)).replace("OUT", str(tmp_path / "out"))
        try:
            with flagsaver.flagsaver():  # one batch size: one program for all
                cli.run_command(suite.main, ["suite", "--batch_size=2", *shlex.split(line)])
        except SystemExit as error:
            return Done(int(error.code or 0), *capsys.readouterr())
        raise AssertionError("run_command returned")

    yield run
    ours.handlers, ours.propagate = before[:2]
    ours.setLevel(before[2])
