"""The command and the scripts: flags, exit codes, dry runs, the sample from end to end, other stages."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hope_jax.core.errors import ConfigError
from hope_jax.data import shards
from hope_jax.data.building import finish, recipe, stages, tasks
from tests.data.building import build, files, text, write_jsonl, write_manifest

ROOT = Path(__file__).parents[2]


def run(command: list[object], **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.endswith(("_LIMIT", "_SPLIT")) and k != "TOKENIZER"}
    return subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, timeout=300, check=False, cwd=ROOT,
        env={**kept, "PYTHON": sys.executable, **environment},
    )  # fmt: skip


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, "-m", "hope_jax.data.build", *arguments])


def test_the_command_builds_and_says_what(tmp_path: Path) -> None:
    for name, first in (("a", 0), ("b", 10)):
        write_jsonl(tmp_path / f"{name}.jsonl", [text(i) for i in range(first, first + 20)])
    path = write_manifest(tmp_path, {name: {"paths": f"{name}.jsonl"} for name in ("a", "b")})
    made = command(f"--manifest={path}", "--workers=1", "--json")
    assert made.returncode == 0, made.stderr
    statistics = json.loads(made.stdout)
    assert statistics == json.loads((tmp_path / "statistics.json").read_text())
    assert statistics["sources"]["b"]["rejected"] == {"exact_duplicate": 10}
    assert all(line.endswith("to do") for line in made.stderr.splitlines())
    again = command(f"--manifest={path}", "--only=b", f"--out={tmp_path / 'only'}", "--workers=1")
    assert again.returncode == 0 and again.stdout.splitlines()[1].split()[:4] == ["b", "0.5", "20", "20"]
    assert not (tmp_path / "only/a").exists()


def test_errors_are_one_paragraph(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(b"no archive")
    path = write_manifest(tmp_path, {"a": {"paths": "a.jsonl.gz"}})
    for arguments, code, message in (
        ([], 2, "error: --manifest is missing"),
        ([f"--manifest={path}", "--workers=-1"], 2, "flag --workers=-1: -1 is not"),
        ([f"--manifest={path}", "--only=a"], 2, "--only=a: needs --out=DIR"),
        ([f"--manifest={path}", "--workers=1"], 1, "a.jsonl.gz: the archive is truncated or damaged"),
    ):
        made = command(*arguments)
        assert (made.returncode, made.stdout) == (code, "")
        assert message in made.stderr.splitlines()[-1] and "Traceback" not in made.stderr


def test_places_that_cannot_be_written_are_named_before_work(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [text(1)])
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/a").write_text("x")
    for keys, message in (
        ({"statistics": "folder"}, r"statistics=.*/folder: want a file in a folder"),
        ({"statistics": "file/x"}, r"statistics=.*/file/x: want a file in a folder"),
        ({"out": "x" * 300}, r"x: File name too long; choose another `out`"),
        ({"out": "file"}, r"out=.*: .*/file is no folder; move it away"),
        ({"out": "taken"}, r"out=.*: .*/taken/a is no folder; move it away"),
    ):
        planned = tasks.make_plan(
            recipe.load_manifest(write_manifest(tmp_path, {"a": {"paths": "a.jsonl"}}, **keys), {})
        )
        with pytest.raises(ConfigError, match=message):
            finish.check_outputs(planned)


@pytest.mark.parametrize("most", [3000, 60_000])  # where the documents end, and where the shards do
def test_a_disk_without_room_is_one_paragraph(tmp_path: Path, most: int) -> None:
    write_jsonl(tmp_path / "a.jsonl", [text(i, 40) for i in range(400)])
    path = write_manifest(tmp_path, {"a": {"paths": "a.jsonl"}}, dedup={"exact": False}, holdout=1e-6)
    script = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({most}, {most})); "
        "from hope_jax import cli; from hope_jax.data import build; "
        f"cli.run_command(build.main, ['x', '--manifest={path}', '--workers=1'])"
    )
    made = run([sys.executable, "-c", script])
    assert made.returncode == 1 and "Traceback" not in made.stderr
    last = made.stderr.strip().splitlines()[-1]
    assert "cannot be written: " in last and "make room, or choose another --out" in last, made.stderr
    assert not (tmp_path / "shards/a/manifest.json").exists()


def test_a_package_that_is_missing_is_named(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['datatrove'] = None; from hope_jax import cli; "
        "from hope_jax.data import build; "
        f"cli.run_command(build.main, ['x', '--manifest={tmp_path}/m.yaml'])"
    )
    made = run([sys.executable, "-c", script])
    assert made.returncode == 2 and "pip install 'hope_jax[data]'" in made.stderr


@pytest.mark.parametrize("script", ["run_sample.sh", "run_full.sh"])
def test_scripts_explain_themselves(script: str) -> None:
    shown = run([ROOT / "data" / script, "--help"])
    assert shown.returncode == 0 and shown.stdout.startswith(f"Usage: ./data/{script}")
    planned = run([ROOT / "data" / script, "--dry_run"], TOKENIZER="embedded", RW_LIMIT="77", RW_SPLIT="part")
    assert planned.returncode == 0, planned.stderr
    assert "duplicates: exact on, near on, over all sources" in planned.stdout
    lost = run([ROOT / "data" / script, "--dry_run"], TOKENIZER="embedded", PYTHON="nope")
    assert lost.returncode == 2 and lost.stderr.startswith("error: nope not found; set PYTHON to a Python")
    if script == "run_full.sh":
        assert "tiiuae/falcon-refinedweb" in planned.stdout and "split part, limit 77" in planned.stdout
        refused = run([ROOT / "data" / script, "--dry_run"])
        assert refused.returncode == 2 and "the variable TOKENIZER is not set" in refused.stderr


def test_the_sample_is_built_offline(tmp_path: Path) -> None:
    """Its text sources give the same counts anywhere; code differs with the interpreter."""
    made = run(
        [ROOT / "data/run_sample.sh", f"--out={tmp_path}", "--only=speeches,jargon,novel,scripture", "--json"]
    )
    assert made.returncode == 0, made.stderr
    sources = json.loads(made.stdout)["sources"]
    kept = {name: (s["documents_train"], s["documents_heldout"]) for name, s in sources.items()}
    assert kept == {"speeches": (25, 2), "jargon": (480, 41), "novel": (58, 3), "scripture": (82, 7)}
    for name in sources:
        shards.check_files(tmp_path / name, shards.read_manifest(tmp_path / name))


def test_slurm_jobs_are_chained_and_then_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stub of sbatch runs each job's task array at once, as Slurm would after the jobs it depends on."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "sbatch").write_text(SBATCH.format(python=sys.executable, log=tmp_path / "jobs"))
    (tools / "scontrol").write_text("#!/bin/sh\necho here\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    for i in range(2):
        write_jsonl(tmp_path / f"a/{i}.jsonl", [text(100 * i + j) for j in range(10)])
    keys = {"slurm": {"time": "1:00:00", "partition": "p", "with_srun": False}}
    path = write_manifest(tmp_path, {"a": {"paths": "a", "shards": 2}}, **keys)
    planned = tasks.make_plan(recipe.load_manifest(path, {}))
    assert not stages.run(planned, "slurm", workers=2)
    jobs = (tmp_path / "jobs").read_text().splitlines()
    assert [job.split()[0] for job in jobs] == ["m-clean", "m-exact-signatures", "m-exact-find", "m-shards"]
    assert [job.split()[1:] for job in jobs] == [["none"], ["afterok:1"], ["afterok:2"], ["afterok:3"]]
    build(path)
    made = files(tmp_path / "shards")
    build(write_manifest(tmp_path, {"a": {"paths": "a", "shards": 2}}, out="local"))
    assert made == files(tmp_path / "local")
    with pytest.raises(ConfigError, match="slurm: want at least `time` and `partition`"):
        planned = tasks.make_plan(
            recipe.load_manifest(write_manifest(tmp_path, {"a": {"paths": "a"}}, out="x"), {})
        )
        stages.run(planned, "slurm")


SBATCH = """#!{python}
import os, re, subprocess, sys
script = open(sys.argv[-1]).read() if os.path.exists(sys.argv[-1]) else sys.stdin.read()
if "merge_stats" in script:
    print("Submitted batch job 0")
    sys.exit()
log = "{log}"
job = len(open(log).readlines()) + 1 if os.path.exists(log) else 1
name = re.search("--job-name=(.*)", script)[1]
after = [a.partition("=")[2] for a in sys.argv if a.startswith("--dependency=")]
with open(log, "a") as file:
    print(name, after[0] if after else "none", file=file)
pickled = re.search("launch_pickled_pipeline (.*)", script)[1].strip()
for task in range(int(re.search("--array=0-([0-9]+)", script)[1]) + 1):
    environment = dict(os.environ, SLURM_ARRAY_TASK_ID=str(task), SLURM_NODELIST="here", RUN_OFFSET="0")
    subprocess.run([sys.executable, "-m", "datatrove.tools.launch_pickled_pipeline", pickled],
                   env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print("Submitted batch job", job)
"""
