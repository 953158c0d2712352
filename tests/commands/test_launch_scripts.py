"""The scripts of launch/: their help, their dry runs, and what they do with a stub in the package's place."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = (
    "two_gpus.sh",
    "cpu_dp_smoke.sh",
    "slurm.sbatch",
    "long_run.sh",
    "passkey_smoke.sh",
    "gpu_check.sh",
    "compile_check.sh",
)
ALL = sorted(path.name for path in (ROOT / "launch").iterdir())

STUB = """#!/bin/sh
# In the environment's python's place: versions, pip, and a run whose exit codes are listed in $CODES.
case "$*" in
    -c*sys.version_info*) exec "$REAL" "$@" ;;
    "-m pip"*) exit 0 ;;
    "-m hope_jax.digest"*) echo "$(basename "$3")" | sed "s/first\\|second/$SAME/"; exit 0 ;;
    -c*json*) exec "$REAL" "$@" ;;
esac
echo "$*" >>"$LOG"
case "$*" in *"${FAIL:-no such argument}") exit 1 ;; esac
code=$(head -n 1 "$CODES")
sed -i 1d "$CODES"
exit "${code:-0}"
"""


def run(
    script: str, *arguments: str, folder: Path | str = "/", **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(ROOT / "launch" / script), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )


@pytest.fixture
def stub(tmp_path: Path) -> dict[str, str]:
    """An environment in which python, srun and scontrol only write down how they were called."""
    folder = tmp_path / "venv" / "bin"
    folder.mkdir(parents=True)
    (folder / "python").write_text(STUB)
    (folder / "srun").write_text('#!/bin/sh\necho "srun $*" >>"$LOG"\nshift\nexec "$@"\n')
    (folder / "scontrol").write_text('#!/bin/sh\necho "scontrol $*" >>"$LOG"\n')
    for path in folder.iterdir():
        path.chmod(0o755)
    (folder / "activate").write_text(f'PATH="{folder}:$PATH"\n')
    (tmp_path / "codes").write_text("")
    (tmp_path / "log").write_text("")
    return {
        "VENV": str(tmp_path / "venv"),
        "PYTHON": sys.executable,
        "REAL": sys.executable,
        "LOG": str(tmp_path / "log"),
        "CODES": str(tmp_path / "codes"),
        "SAME": "same",
        "PAUSE": "0",
    }


def called(stub: dict[str, str]) -> list[str]:
    return Path(stub["LOG"]).read_text().splitlines()


@pytest.mark.parametrize("script", ALL)
def test_scripts_are_bash_that_parses_and_fits_the_line(script: str) -> None:
    path = ROOT / "launch" / script
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, path.read_text().splitlines())) <= 110
    assert os.access(path, os.X_OK) == (script != "common.sh")


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("script", ALL)
def test_shellcheck_finds_nothing(script: str) -> None:
    command = ["shellcheck", "--shell=bash", "--exclude=SC1091", str(ROOT / "launch" / script)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_says_usage_and_that_no_gpu_has_run_it(script: str, flag: str) -> None:
    done = run(script, flag)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: ") and "--dry_run" in done.stdout
    assert re.search(r"(there was no GPU|without a GPU|nor a GPU)", done.stdout)
    assert not re.search(r"^#", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("script", "arguments", "commands"),
    [
        (
            "two_gpus.sh",
            ["--config=configs/pilot.py", "--config.train.steps=3"],
            [
                "env CUDA_VISIBLE_DEVICES=0\\,1 python -c ",
                "exec env CUDA_VISIBLE_DEVICES=0\\,1 python -m hope_jax.launch --config=configs/pilot.py "
                "--config.train.steps=3",
            ],
        ),
        (
            "cpu_dp_smoke.sh",
            [],
            [
                "rm -rf runs/cpu_dp_smoke/first runs/cpu_dp_smoke/second",
                "env JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=2 python -m hope_jax.launch "
                "--config=configs/pilot_smoke.py --config.train.steps=20",
                "--workdir=runs/cpu_dp_smoke/second",
                "python -m hope_jax.digest runs/cpu_dp_smoke/first",
            ],
        ),
        (
            "cpu_dp_smoke.sh",
            ["--processes", "--config=x.py"],
            [
                "--workdir=runs/cpu_dp_smoke/first --coordinator=127.0.0.1:29476 --num_processes=2 "
                "--process_id=1",
                "--num_processes=2 --process_id=0",
            ],
        ),
        (
            "passkey_smoke.sh",
            ["--keys=3", "--config.train.steps=9"],
            [
                "rm -rf runs/passkey_smoke/seed_1",
                "python -m hope_jax.launch --config=configs/passkey_smoke.py --config.train.steps=9 "
                "--config.train.seed=5 --workdir=runs/passkey_smoke/seed_5",
                "runs/passkey_smoke/seed_5 --out=runs/passkey_smoke/passkey_smoke.json --keys=3",
            ],
        ),
        (
            "gpu_check.sh",
            ["--again", "pilot/two_pass", "torch"],
            [
                f"timeout 600 python -m hope_jax.device_check --out=runs/gpu_check --again {part}"
                for part in ("pilot/two_pass", "torch")
            ],
        ),
        (
            "compile_check.sh",
            ["cms_write"],
            [f"hope_jax.compile_check --topology={name} cms_write" for name in ("rtx6000ada:1", "v5e:2x2")],
        ),
        (
            "slurm.sbatch",
            ["--config=x.py", "--workdir=d"],
            [
                "srun --kill-on-bad-exit=1 python -m hope_jax.launch --distributed=auto --config=x.py "
                "--workdir=d",
                "scontrol requeue JOB",
            ],
        ),
        (
            "long_run.sh",
            ["--config=configs/pilot.py"],
            ["tmux new-session -d -s pilot ", "--workdir=runs/pilot", "tee\\ -ia\\ runs/pilot/long_run.log"],
        ),
        (
            "long_run.sh",
            ["--foreground", "--config=x.py"],
            ["python -m hope_jax.launch --config=x.py --workdir=runs/x"],
        ),
        (
            "e2e_smoke.sh",
            ["--limit=7"],
            [
                "env PYTHON=python ./data/run_sample.sh",
                "--config.data.source=data/shards/sample",
                "python -m hope_jax.evals.suite --checkpoint=runs/e2e_smoke/run --out=runs/e2e_smoke/evals "
                "--only=zeroshot --zeroshot_tasks=piqa --zeroshot_data=runs/e2e_smoke/piqa --limit=7 "
                "--option=zeroshot_note=made-up\\ items\\,\\ not\\ PIQA",
            ],
        ),
        (
            "eval_smoke.sh",
            ["--checkpoint=runs/x", "--limit=3"],
            [
                "python -m hope_jax.evals.suite --checkpoint=/runs/x --out=runs/eval_smoke --memorize",
                "--limit=3",
            ],
        ),
    ],
)
def test_dry_run_prints_the_commands_and_does_nothing(
    script: str, arguments: list[str], commands: list[str], tmp_path: Path
) -> None:
    done = run(script, "--dry_run", *arguments, VENV=str(tmp_path / "venv"), SLURM_SUBMIT_DIR=str(ROOT))
    assert (done.returncode, done.stderr) == (0, "")
    for command in commands:
        assert command in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", [name for name in ALL if name != "common.sh"])
@pytest.mark.parametrize("flag", ["--dry_run", "--dry-run", "--help", "-h"])
def test_nothing_is_done_wherever_the_flag_stands(script: str, flag: str, tmp_path: Path) -> None:
    given = [
        "--config=x.py",
        f"--workdir={tmp_path}/w",
        "--processes",
        "--foreground",
        "--config.log.every=1",
    ]
    nowhere = {"VENV": str(tmp_path / "venv"), "PYTHON": "false", "SLURM_SUBMIT_DIR": str(ROOT), "TMUX": ""}
    shown = set()
    for place in range(len(given) + 1):
        done = run(script, *given[:place], flag, *given[place:], OUT=str(tmp_path / "out"), **nowhere)
        assert (done.returncode, done.stderr) == (0, ""), place
        assert flag not in done.stdout or "Usage" in done.stdout
        shown.add(done.stdout)
    assert len(shown) == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("script", "arguments", "environment", "message"),
    [
        ("two_gpus.sh", [], {"GPUS": "0"}, "GPUS=0"),
        ("slurm.sbatch", ["--config=x"], {}, "--workdir=DIR is missing"),
        ("long_run.sh", ["--workdir=x"], {}, "--config=FILE is missing"),
        ("e2e_smoke.sh", ["--piqa=no/such/file"], {}, "--piqa=no/such/file: no such file"),
        ("e2e_smoke.sh", ["--piqa="], {}, "--piqa= is empty; name a file"),
    ],
)
def test_wrong_usage_is_refused(
    script: str, arguments: list[str], environment: dict[str, str], message: str
) -> None:
    done = run(script, *arguments, SLURM_SUBMIT_DIR=str(ROOT), **environment)
    assert done.returncode == 2 and message in done.stderr


@pytest.mark.parametrize(("same", "code"), [("same", 0), ("&", 1)])
def test_cpu_dp_smoke_compares_two_runs(stub: dict[str, str], tmp_path: Path, same: str, code: int) -> None:
    done = run("cpu_dp_smoke.sh", "--config=x.py", **{**stub, "SAME": same, "OUT": str(tmp_path / "out")})
    assert done.returncode == code, done.stderr
    assert ("deterministic: same" in done.stdout) == (code == 0)
    assert called(stub) == [
        f"-m hope_jax.launch --config=x.py --workdir={tmp_path}/out/{name}" for name in ("first", "second")
    ]


@pytest.mark.parametrize("failing", ["--process_id=0", "--process_id=1"])
def test_cpu_dp_smoke_starts_two_processes_and_fails_with_either(
    stub: dict[str, str], tmp_path: Path, failing: str
) -> None:
    environment = {**stub, "OUT": str(tmp_path / "out"), "FAIL": failing}
    done = run("cpu_dp_smoke.sh", "--processes", "--config=x.py", **environment)
    assert done.returncode == 1
    assert sorted(line.rpartition(" ")[2] for line in called(stub)) == ["--process_id=0", "--process_id=1"]


@pytest.mark.parametrize(("codes", "calls"), [([0, 0, 0], 3), ([0, 0, 1], 3), ([0, 1], 2)])
def test_passkey_smoke_trains_the_seeds_then_measures(
    stub: dict[str, str], tmp_path: Path, codes: list[int], calls: int
) -> None:
    Path(stub["CODES"]).write_text("".join(f"{c}\n" for c in codes))
    out = tmp_path / "out"
    done = run("passkey_smoke.sh", "--config=x.py", "--keys=3", **{**stub, "SEEDS": "7 8", "OUT": str(out)})
    assert done.returncode == codes[-1]
    launched = [
        f"-m hope_jax.launch --config=x.py --config.train.seed={seed} --workdir={out}/seed_{seed}"
        for seed in (7, 8)
    ]
    measured = (
        f"-m hope_jax.evals.passkey_smoke --checkpoints={out}/seed_7,{out}/seed_8 "
        f"--out={out}/passkey_smoke.json --keys=3"
    )
    assert called(stub) == [*launched, measured][:calls]


@pytest.mark.parametrize(
    ("codes", "starts", "code"),
    [([1, 137, 0], 3, 0), ([1, 1, 1], 3, 1), ([2], 1, 2), ([0], 1, 0)],
    ids=["restarted", "given_up", "configuration", "done"],
)
def test_long_run_starts_again_until_the_end(
    stub: dict[str, str], tmp_path: Path, codes: list[int], starts: int, code: int
) -> None:
    Path(stub["CODES"]).write_text("".join(f"{c}\n" for c in codes))
    done = run("long_run.sh", "--foreground", "--config=x.py", f"--workdir={tmp_path}/w", **stub)
    assert done.returncode == code, done.stderr
    assert called(stub) == [f"-m hope_jax.launch --config=x.py --workdir={tmp_path}/w"] * starts


def test_a_run_that_an_alarm_stopped_is_not_started_again(stub: dict[str, str], tmp_path: Path) -> None:
    Path(stub["CODES"]).write_text("1\n0\n1\n")
    (tmp_path / "alarm.txt").write_text("the writes do harm\n")
    done = run("long_run.sh", "--foreground", "--config=x.py", f"--workdir={tmp_path}", **stub)
    assert done.returncode == 1 and "alarm.txt says which" in done.stderr and len(called(stub)) == 1
    Path(stub["CODES"]).write_text("1\n")
    environment = {**stub, "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "7"}
    assert run("slurm.sbatch", "--config=x.py", f"--workdir={tmp_path}", **environment).returncode == 1
    assert "scontrol requeue 7" not in called(stub)


@pytest.mark.parametrize(
    ("code", "interrupted", "requeued"),
    [(0, False, False), (0, True, True), (1, False, True), (2, False, False)],
)
def test_slurm_queues_a_run_again_that_is_not_at_its_end(
    stub: dict[str, str], tmp_path: Path, code: int, interrupted: bool, requeued: bool
) -> None:
    Path(stub["CODES"]).write_text(f"{code}\n")
    (tmp_path / "summary.json").write_text(f'{{"interrupted": {str(interrupted).lower()}}}')
    environment = {**stub, "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "7"}
    done = run("slurm.sbatch", "--config=x.py", f"--workdir={tmp_path}", **environment)
    assert done.returncode == code, done.stderr
    assert ("scontrol requeue 7" in called(stub)) == requeued


@pytest.mark.parametrize("given", [False, True])
def test_e2e_smoke_says_whether_its_items_are_piqa(stub: dict[str, str], tmp_path: Path, given: bool) -> None:
    file = tmp_path / "piqa.jsonl"
    file.write_text("{}\n")
    done = run("e2e_smoke.sh", *[f"--piqa={file}"] * given, **{**stub, "OUT": str(tmp_path / "out")})
    # The stub in python's place leaves no result.
    assert done.returncode == 1 and "zeroshot.json" in done.stderr
    assert ("WARNING: made-up items, not PIQA" in done.stderr) == (not given)
    assert ("zeroshot_note=made-up items, not PIQA" in " ".join(called(stub))) == (not given)
    assert (tmp_path / "out" / "piqa" / "piqa_validation.jsonl").is_file() == given


def test_eval_smoke_trains_only_where_there_is_no_checkpoint(stub: dict[str, str], tmp_path: Path) -> None:
    done = run("eval_smoke.sh", "--checkpoint=runs/x", **{**stub, "OUT": str(tmp_path / "out")})
    # The stub in python's place leaves no report.
    assert done.returncode == 1
    assert not any("hope_jax.launch" in line for line in called(stub))
    assert any("hope_jax.evals.suite --checkpoint=/runs/x " in line for line in called(stub))


def test_relative_paths_of_data_are_those_of_the_callers_folder(stub: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "piqa.jsonl").write_text("{}\n")
    copy = tmp_path / "out" / "piqa" / "piqa_validation.jsonl"
    for flag, more in (("--piqa=here/piqa.jsonl", {}), ("--limit=2", {"PIQA_FILE": "here/piqa.jsonl"})):
        copy.unlink(missing_ok=True)
        done = run("e2e_smoke.sh", flag, folder=tmp_path, **{**stub, **more, "OUT": str(tmp_path / "out")})
        assert "no such file" not in done.stderr and "WARNING" not in done.stderr
        assert copy.read_text() == "{}\n"
    given = ["zeroshot_data=data", "intents=a/b", "documents=c.txt", "segments=d", "baseline=/e", "seed=1"]
    flags = [f"--{argument}" for argument in ("checkpoint=runs/x,/y", *given)]
    done = run("eval_smoke.sh", "--dry_run", *flags, folder=tmp_path)
    assert f" --checkpoint={tmp_path}/runs/x\\,/y " in done.stdout
    (tmp_path / "a,b").mkdir()
    for names, wanted in (("c,a,b", f"{tmp_path}/c,{tmp_path}/a,b"), ("", ""), ("a,b,", f"{tmp_path}/a,b,")):
        named = run("eval_smoke.sh", "--dry_run", f"--checkpoint={names}", "--documents=", folder=tmp_path)
        assert f" --checkpoint={wanted} " in named.stdout.replace("\\", "")
        assert named.stdout.rstrip().splitlines()[-2].endswith(" --documents=")
    assert done.stdout.rstrip().endswith(
        f"--intents=runs/eval_smoke/made_up --zeroshot_data={tmp_path}/data --intents={tmp_path}/a/b "
        f"--documents={tmp_path}/c.txt --segments={tmp_path}/d --baseline=/e --seed=1\n"
        "test -s runs/eval_smoke/report.html"
    )
    assert "zeroshot_note" not in done.stdout
    assert (
        " --checkpoint=runs/x "
        in run("eval_smoke.sh", "--dry_run", "--checkpoint=runs/x", folder=ROOT).stdout
    )


def test_slurm_gives_up_after_some_failures(stub: dict[str, str], tmp_path: Path) -> None:
    environment = {**stub, "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "7", "RETRIES": "2"}
    for _ in range(2):
        Path(stub["CODES"]).write_text("1\n")
        run("slurm.sbatch", "--config=x.py", f"--workdir={tmp_path}", **environment)
    assert called(stub).count("scontrol requeue 7") == 1
