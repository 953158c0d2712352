"""What the command that evaluates refuses, leaves out, and survives."""

import shutil
from pathlib import Path

import pytest

from hope_jax.core.errors import ConfigError
from hope_jax.evals.suite.run import Run
from tests.evals import made_up
from tests.evals.made_up import Counter
from tests.evals.suite.running import Command


def test_an_evaluation_that_fails_stops_no_other(
    command: Command, counter: Counter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    modules = {
        "data": made_up.failing_module(made_up.bad_data()),
        "crash": made_up.failing_module(ZeroDivisionError("by zero")),
        "full": made_up.failing_module(RuntimeError("RESOURCE_EXHAUSTED: allocating 1073741824 bytes")),
        "texts": made_up.texts_module(counter),
    }
    modules["crash"].__name__, modules["full"].__name__ = "made_up_crash", "made_up_full"
    made_up.register(monkeypatch, modules, {})
    line = "--checkpoint=RUNS/one --out=OUT --limit=2"
    for _ in range(2):
        done = command(line)
        assert done.code == 1 and counter.calls == {"texts": 1}
        assert (
            "error: data of one/2 failed: data of the made-up evaluation are missing; bring them\n"
            in done.err
        )
        assert "error: crash of one/2 failed: ZeroDivisionError at made_up.py:" in done.err
        assert "asks for 1.00 GiB at once; lower --batch_size, or shorten the contexts" in done.err
        assert "Traceback" not in done.err
    done = command(f"{line} --option=its_own=1")
    assert done.code == 1 and "no evaluation has read" not in done.err, "the one that failed may read it"
    for name in ("report.md", "report.html"):
        text = (tmp_path / "out" / name).read_text()
        assert "data failed: data of the made-up evaluation are missing; bring them" in text
        assert "crash failed: ZeroDivisionError at made_up.py:" in text and "Made-up texts" in text
    assert command(f"{line} --only=texts").code == 0


def test_evaluations_without_what_they_need_are_left_out_and_named(
    command: Command, counter: Counter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    modules = {name: made_up.texts_module(counter, name) for name in ("texts", "folder")}
    made_up.register(monkeypatch, modules, {"folder": ("segments",)})
    assert command("--checkpoint=RUNS/one --out=OUT --limit=2").code == 0
    assert counter.calls == {"texts": 1}
    assert "folder: not run: it needs --segments" in (tmp_path / "out" / "report.md").read_text()
    assert command("--checkpoint=RUNS/one --out=OUT --limit=2 --segments=RUNS").code == 0
    assert counter.calls == {"texts": 1, "folder": 1}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("--out=OUT", 2, "--checkpoint is missing"),
        ("--checkpoint=RUNS/one", 2, "--out is missing"),
        ("--checkpoint=RUNS/one --out=OUT x", 2, "unexpected argument 'x'"),
        (
            "--checkpoint=RUNS/one --out=OUT --only=texts,tests",
            2,
            "no evaluation 'tests'; want some of texts, plain; did you mean texts?",
        ),
        ("--checkpoint=RUNS/one --out=OUT --limit=0", 2, "limit"),
        ("--checkpoint=RUNS/one --out=OUT --lengths=2k", 2, "--lengths=2k: "),
        ("--checkpoint=RUNS/one --out=OUT --segments=absent", 2, "--segments=absent: no such file or folder"),
        ("--checkpoint=RUNS/one --out=OUT --option=depth", 2, "--option=depth: want KEY=VALUE"),
        (
            "--checkpoint=RUNS/one --out=OUT --option=scael=2",
            2,
            "--option=scael: no evaluation has it; known: depth, its_own, names, scale, unread, word; "
            "did you mean scale?",
        ),
        ("--checkpoint=RUNS/one --out=OUT --memorize_steps=2", 2, "changes nothing without --memorize"),
        ("--checkpoint=RUNS/one --out=OUT --memorize --memorize_steps=0", 2, "memorize_steps"),
        ("--checkpoint=RUNS/one --out=OUT --memorize --memorize_surprise_threshold=nan", 2, "at least 0"),
        ("--checkpoint=RUNS/one --out=OUT --memorize --memorize_layers=a", 2, "--memorize_layers=a: "),
        ("--checkpoint=RUNS/one --out=OUT --memorize --memorize_layers=1", 2, "the model has 0 to 0 (one/2)"),
        (
            "--checkpoint=RUNS/one --out=OUT --memorize --memorize_paths=titan",
            2,
            "the model has no memory 'titan'; its own: cms, fast, slow (one/2)",
        ),
        ("--checkpoint=RUNS/one --out=RUNS/one/config.yaml/x", 2, "cannot be written (Not a directory)"),
        ("--checkpoint=RUNS/one --out=OUT --baseline=a --baseline=b", 2, "want one baseline, got a, b"),
        ("--checkpoint=RUNS/absent --out=OUT", 1, "no such folder"),
        ("--checkpoint=RUNS/one --baseline=RUNS --out=OUT", 1, "holds no checkpoint"),
    ],
)
def test_wrong_usage_is_one_line_and_computes_nothing(
    command: Command, counter: Counter, runs: Path, arguments: str, code: int, message: str
) -> None:
    (runs / "one" / "config.yaml").touch()
    done = command(arguments)
    assert (done.code, done.out) == (code, ""), done.err
    assert message in done.err and done.err.startswith("error: ") and len(done.err.splitlines()) == 1
    assert not counter.calls


def test_options_that_cannot_be_stop_all_evaluations_before_any_runs(
    command: Command, counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(run: Run) -> None:
        if run.options.get("depth", 0) > 1:
            raise ConfigError("depth=2: want a number from 0 to 1")

    modules = {name: made_up.texts_module(counter, name) for name in ("texts", "last")}
    modules["last"].evaluate.check = check  # type: ignore[attr-defined]
    made_up.register(monkeypatch, modules, {})
    done = command("--checkpoint=RUNS/one --out=OUT --option=depth=2")
    assert (done.code, done.out) == (2, "") and "error: depth=2: want" in done.err
    assert not counter.calls
    assert command("--checkpoint=RUNS/one --out=OUT --limit=2 --option=depth=1").code == 0


def test_a_damaged_checkpoint_is_refused_before_anything_runs(
    command: Command, counter: Counter, runs: Path, tmp_path: Path
) -> None:
    """Also where it is the second, or the baseline."""
    shutil.copytree(runs / "one", tmp_path / "bad")
    victim = max((tmp_path / "bad/checkpoints/2").rglob("*"), key=lambda p: p.stat().st_size * p.is_file())
    raw = bytearray(victim.read_bytes())
    raw[len(raw) // 2] ^= 1
    victim.write_bytes(raw)
    for which in ("--checkpoint=BAD", "--checkpoint=RUNS/one,BAD", "--checkpoint=RUNS/one --baseline=BAD"):
        done = command(f"{which} --out=OUT".replace("BAD", str(tmp_path / "bad")))
        assert done.code == 1 and "has SHA-256" in done.err and victim.name in done.err
    assert not counter.calls
