"""The command that evaluates, on several checkpoints, bundles and baselines."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from hope_jax.evals.suite import comparison
from hope_jax.release import bundle
from tests.checkpoints import save_small, small_config
from tests.evals import made_up
from tests.evals.made_up import Counter
from tests.evals.suite.running import Command, read


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
    assert "[one/2: report](one-2/report.html)" in index
    assert "| metric | one/2 | other/2 | n | chance |" in index
    value = read(out / "other-2" / "texts.json")["metrics"]["texts/loss/baseline"]["value"]
    (line,) = [line for line in index.splitlines() if line.startswith("| texts/loss/baseline |")]
    cells = [cell.strip() for cell in line.split("|")]
    assert f"{value:.4g} [" in cells[3] and cells[4:6] == ["2", "–"]


def test_the_index_tells_runs_of_one_name_apart_and_links_their_baseline(
    command: Command, runs: Path, tmp_path: Path
) -> None:
    shutil.copytree(runs / "other", tmp_path / "one")
    line = f"--checkpoint=RUNS/one,{tmp_path / 'one'} --baseline=RUNS/other --out=OUT --limit=2 --only=texts"
    done = command(line)
    assert done.code == 0, done.err
    index = (tmp_path / "out" / "report.md").read_text()
    assert "| metric | one-2 | one-2-2 | n | chance |" in index
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
    assert "error: texts of one/2: the comparison failed: KeyError at test_suite_several.py:" in done.err
    assert "evaluations failed (one/2: comparison of texts)" in done.err
    found = read(tmp_path / "out" / "comparison.json")["evals"]
    assert set(found["texts"]) == {"problem"} and found["plain"]["paired"]
    report = (tmp_path / "out" / "report.md").read_text()
    assert "texts: the comparison failed: KeyError" in report and "plain/loss/baseline" in report
    assert (tmp_path / "out" / "baseline" / "report.html").is_file()
