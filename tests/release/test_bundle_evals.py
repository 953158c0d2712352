"""Evaluations in release bundles."""

import json
import shutil
from pathlib import Path

import pytest

from hope_jax.core.errors import ConfigError
from hope_jax.release import bundle
from hope_jax.storage import arrays, stored
from tests.release.bundles import Runs, contents


def test_the_suites_results_are_in_the_card_with_reports_and_plots(runs: Runs, tmp_path: Path) -> None:
    """Figures with interval, count, chance and leak; whose they are; what is no result stays behind."""
    params = stored.load_checkpoint(runs.main, ("params",)).state["params"]
    digest = arrays.digest(arrays.named({"params": params}))
    evals = tmp_path / "evals"
    for folder, whose in ((evals, digest), (evals / "baseline", "0" * 64)):
        (folder / "plots").mkdir(parents=True)
        (folder / "plots" / "piqa.png").write_bytes(b"png")
        (folder / "report.md").write_text("report")
        (folder / "piqa.partial.jsonl").write_text("{}")
        many = {
            f"t{i}/acc/baseline": {"value": 0.25, "ci95": None, "n": 1, "chance": None} for i in range(30)
        }
        metrics = {
            "piqa/acc/memorized": {"value": 0.5, "ci95": [0.4, 0.6], "n": 64, "chance": 0.5, "leak": True}
        }
        found = {"format": "hope_jax evaluation", "eval": "zeroshot", "metrics": metrics | many}
        subject = {"arrays_digest": whose, "checkpoint": "titan/checkpoints/2"}
        (folder / "zeroshot.json").write_text(json.dumps({**found, "subject": subject}))
    bundle.write(tmp_path / "bundle", runs.main, evals=[evals])
    held = [name for name in contents(tmp_path / "bundle") if name.startswith("evals/")]
    own = ["plots/piqa.png", "report.md", "zeroshot.json"]
    assert sorted(held) == sorted(f"evals/evals/{where}{name}" for where in ("", "baseline/") for name in own)
    card = (tmp_path / "bundle" / "MODEL_CARD.md").read_text()
    assert "| `piqa/acc/memorized` | 0.5 [0.4, 0.6] LEAK | 64 | 0.5 |" in card
    assert "\n### zeroshot\n" in card and "### zeroshot of `titan/checkpoints/2`, not of this model" in card
    assert "7 more are in `evals/evals/zeroshot.json`." in card
    assert bundle.verify(tmp_path / "bundle").files > len(held)


def test_names_that_no_list_can_hold_are_refused(runs: Runs, tmp_path: Path) -> None:
    for name in ("back\\slash", "line\u2028end", "bell\x07"):
        evals = tmp_path / "evals"
        evals.mkdir()
        (evals / f"{name}.json").write_text("{}")
        with pytest.raises(ConfigError, match="a list of digests cannot hold this name"):
            bundle.write(tmp_path / "out", runs.main, [], [evals])
        shutil.rmtree(evals)
        assert not any(tmp_path.iterdir())
