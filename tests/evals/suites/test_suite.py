"""The command that evaluates: what it runs, keeps, refuses, and survives."""

import json
import logging
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from absl.testing import flagsaver
from scipy import stats

from hope_jax import cli, compilation_cache
from hope_jax.errors import ConfigError
from hope_jax.evals import comparison, suite
from hope_jax.evals.run import Run
from hope_jax.training import bundle
from tests.checkpoints import save_small, small_config
from tests.evals import made_up
from tests.evals.made_up import Counter, Killed

pytestmark = pytest.mark.usefixtures("quick")


class Done(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[[str], Done]


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


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def test_one_checkpoint_leaves_jsons_reports_and_plots(command: Command, tmp_path: Path) -> None:
    done = command("--checkpoint=RUNS/one --out=OUT --limit=4 --memorize --seed=5")
    out = tmp_path / "out"
    assert done.code == 0, done.err
    assert done.out == f"{out / 'report.html'}\n"
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert names == {
        "texts.json", "plain.json", "report.html", "report.md",
        "plots/texts-own_plot.png", "plots/plain-metrics.png",
    }  # fmt: skip
    found = read(out / "texts.json")
    assert found["settings"]["limit"] == 4 and found["settings"]["seed"] == 5
    assert found["settings"]["arms"] == ["baseline", "memorized", "control"] and not found["leak"]
    assert found["metrics"]["texts/low/memorized"]["n"] == 4 and "items" not in found
    assert list(found["request"]["options"]) == ["scale"] and str(tmp_path) not in json.dumps(found)


def test_flags_become_the_rule_and_the_options(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from hope_jax.evals import session

    plans: list[Any] = []
    monkeypatch.setattr(session, "run", lambda plan: plans.append(plan) or [])
    done = command(
        "--checkpoint=RUNS/one,RUNS/other --out=OUT --only=plain --memorize --memorize_steps=2 "
        "--memorize_carry --memorize_paths=cms,slow --memorize_layers=0 --memorize_surprise_threshold=0.5 "
        "--memorize_correct_answer --batch_size=4 --records --lengths=2048,4096 --zeroshot_data=RUNS "
        "--zeroshot_tasks=piqa,boolq --option=depth=3 --option=names=[1] --option=word=x=y"
    )
    assert done.code == 0, done.err
    (plan,) = plans
    assert [path.name for path in plan.checkpoints] == ["one", "other"]
    assert (plan.names, plan.batch_size, plan.records, plan.limit) == (("plain",), 4, True, None)
    assert plan.arms == ("baseline", "memorized", "control")
    assert plan.memorize == (2, True, ("cms", "slow"), (0,), 0.5, True)
    assert plan.options.pop("zeroshot_data") == str(plan.checkpoints[0].parent)
    assert plan.options == {
        "niah_lengths": [2048, 4096],
        "passkey_lengths": [2048, 4096],
        "zeroshot_tasks": ["piqa", "boolq"],
        **{"depth": 3, "names": [1], "word": "x=y"},
    }


def test_what_is_there_is_not_run_again_unless_asked_otherwise(
    command: Command, counter: Counter, tmp_path: Path
) -> None:
    line = "--checkpoint=RUNS/one --out=OUT --limit=2"
    assert command(line).code == command(line).code == 0
    assert counter.calls == {"texts": 1, "plain": 1}
    done = command(f"{line} --batch_size=3 --option=unread=1")
    assert done.code == 0 and "no evaluation has read the option unread\n" in done.err
    assert counter.calls == {"texts": 1, "plain": 1}, "neither changes a figure"
    changes = ["--seed=1", "--limit=4", "--memorize", "--option=scale=2", "--records"]
    for count, change in enumerate(changes, 2):
        assert command(f"{line} {change} --only=texts").code == 0
        assert counter.calls == {"texts": count, "plain": 1}
    text = (tmp_path / "out" / "report.md").read_text()
    assert "## Made-up plain" in text, "what is there of this checkpoint is reported too"
    assert command("--checkpoint=RUNS/other --out=OUT --only=texts").code == 0
    assert "## Made-up plain" not in (tmp_path / "out" / "report.md").read_text(), "of another it is not"
    (tmp_path / "out" / "texts.json").write_text("{")
    assert command("--checkpoint=RUNS/other --out=OUT --only=texts").code == 0
    assert counter.calls["texts"] == len(changes) + 3


@pytest.mark.parametrize("kill_after", [8, 20])
def test_a_killed_suite_goes_on(command: Command, counter: Counter, tmp_path: Path, kill_after: int) -> None:
    """Within an evaluation and between two: nothing is scored twice, and the JSONs are the same."""
    line = "--checkpoint=RUNS/one --memorize"
    assert command(f"{line} --out={tmp_path / 'whole'}").code == 0
    whole, counter.scored, counter.kill_after = counter.scored, 0, kill_after
    with pytest.raises(Killed):
        command(f"{line} --out=OUT")
    counter.kill_after = None
    assert command(f"{line} --out=OUT").code == 0
    assert counter.scored == whole == 36
    for name in ("texts.json", "plain.json"):
        first, second = read(tmp_path / "whole" / name), read(tmp_path / "out" / name)
        for found in (first, second):
            found.pop("seconds")
        assert first == second
    assert not list((tmp_path / "out").glob("*.jsonl"))


def test_an_evaluation_that_fails_stops_no_other(
    command: Command, counter: Counter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    modules = {
        "data": made_up.failing_module(made_up.bad_data()),
        "crash": made_up.failing_module(ZeroDivisionError("by zero")),
        "texts": made_up.texts_module(counter),
    }
    modules["crash"].__name__ = "made_up_crash"
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
            "no evaluation 'tests'; want some of texts, plain",
        ),
        ("--checkpoint=RUNS/one --out=OUT --limit=0", 2, "limit"),
        ("--checkpoint=RUNS/one --out=OUT --lengths=2k", 2, "--lengths=2k: "),
        ("--checkpoint=RUNS/one --out=OUT --segments=absent", 2, "--segments=absent: no such file or folder"),
        ("--checkpoint=RUNS/one --out=OUT --option=depth", 2, "--option=depth: want KEY=VALUE"),
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
    modules["last"].check = check  # type: ignore[attr-defined]
    made_up.register(monkeypatch, modules, {})
    done = command("--checkpoint=RUNS/one --out=OUT --option=depth=2")
    assert (done.code, done.out) == (2, "") and "error: depth=2: want" in done.err
    assert not counter.calls
    assert command("--checkpoint=RUNS/one --out=OUT --limit=2 --option=depth=1").code == 0


def test_a_baseline_memorizes_with_what_it_has(command: Command, tmp_path: Path) -> None:
    save_small(tmp_path / "plain", small_config(model={"block_variant": "transformer"}))
    line = (
        f"--baseline={tmp_path / 'plain'} --out=OUT --memorize --memorize_paths=fast --only=texts --limit=2"
    )
    done = command(f"--checkpoint=RUNS/one {line}")
    assert done.code == 0 and "plain/2 has nothing of what is to be written" in done.err, done.err
    out = tmp_path / "out"
    assert read(out / "baseline/texts.json")["settings"]["arms"] == ["baseline"]
    assert read(out / "texts.json")["settings"]["memorize"]["paths"] == ["fast"]
    assert set(read(out / "comparison.json")["evals"]["texts"]["paired"]) >= {"texts/loss/baseline"}


@pytest.mark.nightly
def test_a_suite_that_is_killed_by_the_system_goes_on(runs: Path, tmp_path: Path) -> None:
    def command(out: Path) -> list[str]:
        options = ["--only=perplexity", "--limit=12", "--batch_size=1", "--option=perplexity_tokens=64"]
        where = [f"--checkpoint={runs / 'one'}", f"--out={out}"]
        return [sys.executable, "-m", "hope_jax.evals.suite", *where, *options]

    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True)
    out, journal = tmp_path / "killed", tmp_path / "killed" / "perplexity.partial.jsonl"
    process = subprocess.Popen(command(out), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 6):
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert journal.exists() and not (out / "perplexity.json").exists()
    done = subprocess.run(command(out), check=True, capture_output=True, text=True)
    assert "records are there already" in done.stderr and not journal.exists()
    whole, again = (read(where / "perplexity.json") for where in (tmp_path / "whole", out))
    assert again["metrics"] == whole["metrics"]


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


def test_a_bundle_and_its_workdir_give_the_same_figures(command: Command, runs: Path, tmp_path: Path) -> None:
    bundle.write(tmp_path / "bundle", runs / "one")
    line = "--only=texts --limit=2"
    assert command(f"--checkpoint={tmp_path / 'bundle'} --out={tmp_path / 'a'} {line}").code == 0
    assert command(f"--checkpoint=RUNS/one --out={tmp_path / 'b'} {line}").code == 0
    a, b = (read(tmp_path / where / "texts.json") for where in "ab")
    assert a["metrics"] == b["metrics"] and a["settings_digest"] == b["settings_digest"]
    (tmp_path / "bundle" / "MODEL_CARD.md").write_text("better")
    done = command(f"--checkpoint={tmp_path / 'bundle'} --out={tmp_path / 'c'} {line}")
    assert done.code == 1 and "MODEL_CARD.md: has SHA-256" in done.err


def test_several_checkpoints_have_a_folder_each_and_an_index(command: Command, tmp_path: Path) -> None:
    done = command("--checkpoint=RUNS/one,RUNS/other --out=OUT --limit=2")
    assert done.code == 0, done.err
    out = tmp_path / "out"
    for name in ("one-2", "other-2"):
        assert read(out / name / "texts.json")["subject"]["checkpoint"] == name.replace("-", "/checkpoints/")
        assert (out / name / "report.html").is_file()
    index = (out / "report.md").read_text()
    assert "[one/2: report](one-2/report.html)" in index and "| metric | one/2 | other/2 | chance |" in index
    value = read(out / "other-2" / "texts.json")["metrics"]["texts/loss/baseline"]["value"]
    (line,) = [line for line in index.splitlines() if line.startswith("| texts/loss/baseline |")]
    assert f"{value:.4g} [" in line.split("|")[3] and line.split("|")[4].strip() == "–"


def test_the_index_tells_runs_of_one_name_apart_and_links_their_baseline(
    command: Command, runs: Path, tmp_path: Path
) -> None:
    shutil.copytree(runs / "other", tmp_path / "one")
    line = f"--checkpoint=RUNS/one,{tmp_path / 'one'} --baseline=RUNS/other --out=OUT --limit=2 --only=texts"
    done = command(line)
    assert done.code == 0, done.err
    index = (tmp_path / "out" / "report.md").read_text()
    assert "| metric | one-2 | one-2-2 | chance |" in index
    assert "over checkpoints, with 95 % intervals (n = 2)](plots/texts-checkpoints.png)" in index
    targets = re.findall(r"\]\(([^)#]*)(?:#[\w-]+)?\)", index)
    assert len(targets) == 6 and "baseline/report.html" in targets
    assert all((tmp_path / "out" / target).is_file() for target in targets)


def test_a_baseline_is_evaluated_alike_and_compared_item_by_item(
    command: Command, counter: Counter, tmp_path: Path
) -> None:
    line = "--checkpoint=RUNS/one --baseline=RUNS/other --out=OUT --memorize --only=texts"
    assert command(line).code == 0 and counter.calls == {"texts": 2}
    out = tmp_path / "out"
    compared = read(out / "comparison.json")
    assert compared["baseline"]["checkpoint"] == "other/checkpoints/2"
    found = compared["evals"]["texts"]
    assert found["only_one"] == 0 and found["settings_differ"] == []
    items = [read(where / "texts.json")["items"] for where in (out, out / "baseline")]
    for arm in ("baseline", "memorized", "control"):
        a, b = ({r["key"]: r["loss"] for r in rows if r["arm"] == arm} for rows in items)
        direct = stats.ttest_rel([a[key] for key in made_up.TEXTS], [b[key] for key in made_up.TEXTS])
        test = found["paired"][f"texts/loss/{arm}"]
        assert test["n"] == len(made_up.TEXTS) and test["delta"] != 0
        assert test["p_value"] == pytest.approx(direct.pvalue)
        assert test["ci95"] == pytest.approx([*direct.confidence_interval(0.95)])
    report = (out / "report.md").read_text()
    assert "## Against the baseline" in report and "| texts/loss/control |" in report
    assert (out / "baseline" / "report.html").is_file()
    assert command(line).code == 0 and counter.calls == {"texts": 2}


def test_a_comparison_that_fails_loses_no_report(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compare = comparison.compare

    def failing(checkpoint: dict[str, Any], baseline: dict[str, Any]) -> dict[str, Any]:
        if checkpoint["eval"] == "texts":
            raise KeyError("key")
        return compare(checkpoint, baseline)

    monkeypatch.setattr(comparison, "compare", failing)
    done = command("--checkpoint=RUNS/one --baseline=RUNS/other --out=OUT --limit=2")
    assert done.code == 1 and "Traceback" not in done.err
    assert "error: texts of one/2: the comparison failed: KeyError at test_suite.py:" in done.err
    assert "evaluations failed (one/2: comparison of texts)" in done.err
    found = read(tmp_path / "out" / "comparison.json")["evals"]
    assert set(found["texts"]) == {"problem"} and found["plain"]["paired"]
    report = (tmp_path / "out" / "report.md").read_text()
    assert "texts: the comparison failed: KeyError" in report and "plain/loss/baseline" in report
    assert (tmp_path / "out" / "baseline" / "report.html").is_file()
