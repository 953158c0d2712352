"""The command that evaluates: what it runs, keeps, and goes on with."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.evals.made_up import Counter, Killed
from tests.evals.suite.running import Command, read


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
    from hope_jax.evals.suite import session

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
