"""The command line: config files, overrides, one paragraph an error, exit codes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

from hope_jax import cli
from hope_jax.core.errors import ConfigError, DataError

GOOD = """
from hope_jax.config.experiment import base_config
def get_config():
    config = base_config()
    config.model.update(dict(vocab_size=1024, dim=32, num_layers=1, heads=2))
    config.data.update(dict(seq_len=32, batch_size=2))
    config.train.steps = 2
    config.eval.update(dict(batches=1, generate_tokens=2))
    return config
"""


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.py"
    path.write_text(GOOD)
    return path


def launch(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hope_jax.launch", *map(str, arguments)]
    environment = {**os.environ, "XDG_CACHE_HOME": str(cwd / "cache")}
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False, env=environment
    )


def test_read_config_applies_overrides_in_order(config_file: Path) -> None:
    config = cli.read_config(config_file, ["model.dim=64", "model.dim=96", "data.source=a=b"])
    assert (config.model.dim, config.data.source) == (96, "a=b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(:\n", "line 1: invalid syntax"),
        ("x = 1\n", "no function get_config"),
        ("def get_config():\n    return None\n", "returned None"),
        ("import missing_module_x\n", "line 1: ModuleNotFoundError: No module named 'missing_module_x'"),
        (GOOD.replace("config.train.steps = 2", "config.train.steps = 'x'"), "line 7: TypeError"),
        (GOOD.replace("config.train.steps", "config.train.stepps"), "did you mean train.steps?"),
    ],
)
def test_bad_config_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        cli.read_config(path)
    assert message in str(caught.value)


def test_missing_config_file_names_the_ones_beside_it(config_file: Path) -> None:
    with pytest.raises(ConfigError, match="no such file; in that folder: small.py"):
        cli.read_config(config_file.with_name("smal.py"))


def test_config_file_leaves_nothing_beside_it(config_file: Path) -> None:
    cli.read_config(config_file)
    assert list(config_file.parent.iterdir()) == [config_file]


def test_overrides_are_taken_out_of_the_arguments() -> None:
    taken = cli.split_overrides(
        ["x", "--config=f.py", "--config.model.dim=3", "-config.model.heads", "4", "--config.train.profile"]
        + ["--noconfig.log.tensorboard", "--workdir=w", "--", "--config.model.dim=5"]
    )
    assert taken == [
        *("x", "--config=f.py", "--config_override=model.dim=3", "--config_override=model.heads=4"),
        *("--config_override=train.profile=true", "--config_override=log.tensorboard=false"),
        *("--workdir=w", "--", "--config.model.dim=5"),
    ]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.model.dimm=3", "did you mean model.dim?"),
        ("--config.model.dim", "the value is missing"),
        ("--noconfig.model.dim", "true or false"),
    ],
)
def test_bad_override_flags(argument: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        cli.split_overrides(["x", argument])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("bad key"), 2),
        (DataError("bad text"), 1),
        (flags.Error("bad flag"), 2),
        (OSError("disk"), 1),
    ],
)
@pytest.mark.parametrize("debug", [False, True])
def test_errors_become_one_paragraph(
    error: Exception, code: int, debug: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(argv: list[str]) -> None:
        raise error

    with pytest.raises(SystemExit) as caught:
        cli.run_command(main, ["x", *(["--debug"] if debug else [])])
    out, err = capsys.readouterr()
    assert (caught.value.code, out) == (code, "")
    assert str(error) in err and err.splitlines()[-1].startswith("error: ")
    assert ("Traceback" in err) == debug
    assert debug or len(err.splitlines()) == 1


def test_a_device_without_room_is_told_in_plain_words(capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: list[str]) -> None:
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 35.21GiB.")

    with pytest.raises(SystemExit) as caught:
        cli.run_command(main, ["x"])
    told = "asks for 35.21 GiB at once; give it fewer or shorter texts at once, or a smaller model\n"
    assert caught.value.code == 1 and capsys.readouterr().err.endswith(told)


def test_unknown_flag_is_named_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.run_command(lambda argv: None, ["x", "--debugg"])
    assert caught.value.code == 2
    assert "Did you mean: debug" in capsys.readouterr().err


@pytest.mark.parametrize("code", [None, 0, 1])
def test_exit_code_is_that_of_main(code: int | None) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.run_command(lambda argv: code, ["x"])
    assert caught.value.code == (code or 0)


def test_launch_help_and_usage_errors(config_file: Path) -> None:
    helped = launch("--help", cwd=config_file.parent)
    assert helped.returncode == 0 and "--workdir" in helped.stdout and not helped.stderr
    missing = launch(cwd=config_file.parent)
    assert (missing.returncode, missing.stdout) == (2, "")
    assert missing.stderr.startswith("error: --config is missing")


def test_launch_refuses_before_anything_is_written(config_file: Path) -> None:
    refused = launch(
        f"--config={config_file}", "--config.model.dim=30", "--config.model.heads=4", cwd=config_file.parent
    )
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == "error: model.heads=4 does not divide model.dim=30\n"
    assert list(config_file.parent.iterdir()) == [config_file]


def test_a_mistyped_level_is_refused_and_an_added_one_is_said(
    config_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    refused = launch(f"--config={config_file}", "--config.cms.levels.cms_fst.lr=1", cwd=config_file.parent)
    assert refused.returncode == 2 and refused.stderr == (
        "error: cms.levels.cms_fst: there is no cms_fst; there are cms_fast; did you mean cms_fast? "
        "(to add cms_fst: --config.cms.levels.+cms_fst=VALUE)\n"
    )
    caplog.set_level("INFO", "hope_jax.cli")
    cli.read_config(config_file, ["cms.levels={'cms_fast': {'update_period': 4, 'lr': 1}}"])
    assert "cms_fast: not named, so by default optimizer=momentum, beta=0.9" in caplog.text


@pytest.mark.nightly
@pytest.mark.parametrize("home", [None, "/nonexistent", "/"])
def test_launch_needs_neither_a_home_nor_an_account(config_file: Path, home: str | None) -> None:
    """As a user that is but a number, where the tests run as root; else as one without HOME."""
    workdir = config_file.parent / "run"
    workdir.mkdir()
    workdir.chmod(0o777)
    unknown = "--reuid=12345 --regid=12345 --clear-groups"
    reading = "--inh-caps=+dac_read_search --ambient-caps=+dac_read_search"
    prefix = (
        ["setpriv", *unknown.split(), *reading.split()]
        if os.geteuid() == 0 and shutil.which("setpriv")
        else []
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "XDG_CACHE_HOME")}
    environment |= {"TMPDIR": "/nonexistent"} | ({} if home is None else {"HOME": home})
    run = subprocess.run(
        [*prefix, sys.executable, "-m", "hope_jax.launch", f"--config={config_file}", f"--workdir={workdir}"],
        cwd="/", capture_output=True, text=True, timeout=300, check=False, env=environment,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert (workdir / "report.html").is_file() and "Traceback" not in run.stderr
    if prefix:
        assert "compiled programs are not kept" in run.stderr


@pytest.mark.nightly
def test_launch_trains_into_the_default_workdir(config_file: Path) -> None:
    run = launch(f"--config={config_file}", "--config.log.tensorboard=false", cwd=config_file.parent)
    assert run.returncode == 0, run.stderr
    summary = json.loads(run.stdout.splitlines()[-1])
    assert set(summary) == {
        *("eval_loss", "unigram_entropy", "tokens_per_sec", "train_seconds"),
        *("eval_loss_no_writes", "periods_written"),
    }
    assert summary["periods_written"] == 1.0 and summary["eval_loss_no_writes"] != summary["eval_loss"]
    assert (config_file.parent / "runs" / "small" / "metrics.jsonl").is_file()


@pytest.mark.nightly
def test_a_second_launch_reads_the_programs_that_the_first_compiled(config_file: Path) -> None:
    """One of which the first left half written."""
    folder = config_file.parent

    def rows(workdir: str) -> list[dict[str, float]]:
        run = launch(
            *(f"--config={config_file}", f"--workdir={workdir}", "--compilation_cache=kept"),
            *("--config.log.tensorboard=false", "--config.eval.generate_tokens=0"),
            cwd=folder,
        )
        assert run.returncode == 0, run.stderr
        listed = [json.loads(line) for line in (folder / workdir / "metrics.jsonl").read_text().splitlines()]
        return [{key: row[key] for key in ("loss", "grad_norm", "eval_loss") if key in row} for row in listed]

    first = rows("first")
    kept = {path: path.stat().st_mtime_ns for path in (folder / "kept").glob("*-cache")}
    assert [path for path in kept if path.name.startswith("jit_train")]
    damaged = next(path for path in kept if path.name.startswith("jit_evaluate"))
    damaged.write_bytes(damaged.read_bytes()[:100])
    del kept[damaged]
    assert rows("second") == first
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert not (folder / "cache" / "hope_jax").exists()


FILE = """
from hope_jax.config.presets import pilot_smoke_config

def get_config(steps: int, scale: float = 0.1, gate: bool = True, threshold: float | None = 0.5, note="none"):
    config = pilot_smoke_config()
    config.memory.surprise_threshold = threshold if gate else 7.0
    config.teach.scale, config.train.steps = scale, steps
    return config
"""


def test_a_config_file_takes_values(tmp_path: Path) -> None:
    path = tmp_path / "sweep.py"
    path.write_text(FILE)
    config = cli.read_config(Path(f"{path}:scale=0.5,steps=7,note=x"), ["teach.clip=2"])
    assert (config.teach.scale, config.train.steps, config.teach.clip) == (0.5, 7, 2.0)
    path.with_name("any.py").write_text(FILE.replace('note="none"', "note=None, **more"))
    assert cli.read_config(Path(f"{path.with_name('any.py')}:steps=7")).train.steps == 7
    thresholds = {"gate=False": 7.0, "gate=true": 0.5, "threshold=None": None, "threshold=2": 2.0}
    for given, wanted in thresholds.items():
        assert cli.read_config(Path(f"{path}:steps=7,{given}")).memory.surprise_threshold == wanted


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("scal=1", "no value 'scal'; it takes steps, scale, gate, threshold, note"),
        ("steps=1.5", "steps: want a whole number; got '1.5'"),
        ("steps=1,gate=maybe", "gate: want true or false; got 'maybe'"),
        ("scale=0.2", "needs steps; add :steps=VALUE"),
        ("steps=1,steps=2", "each name once"),
        ("scale", "want FILE.py:NAME=VALUE"),
        ("", "want FILE.py:NAME=VALUE"),
    ],
)
def test_values_that_a_config_file_does_not_take(tmp_path: Path, values: str, message: str) -> None:
    path = tmp_path / "sweep.py"
    path.write_text(FILE)
    with pytest.raises(ConfigError, match=message):
        cli.read_config(Path(f"{path}:{values}"))
