"""What reports say: every figure with its interval, its count and its chance, leaks wherever they show."""

import html
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hope_jax.core.files import dump_row
from hope_jax.evals.suite import pages, plots, registry
from hope_jax.evals.suite.pages import Reported
from hope_jax.evals.suite.plots import LEAK
from hope_jax.evals.suite.registry import Entry, Result

ABOUT = {
    "checkpoint": "run/checkpoints/4", "step": 4, "arrays_digest": "a" * 64, "config_digest": "c" * 64,
    "tokenizer_digest": "t" * 64, "versions": {"jax": "0.10"}, "block_variant": "hope_hybrid",
    "parameters": 1234, "config": {"model": {"dim": 16}},
}  # fmt: skip


def outcome(leak: bool = False) -> dict[str, Any]:
    mark = {"leak": True} if leak else {}
    return {
        "eval": "made", "settings": {"limit": 5, "data": {"sha256": "d1"}}, "settings_digest": "e" * 64,
        "leak": leak, "seconds": 1.5,
        "metrics": {
            "piqa/acc/baseline": {"value": 0.4321, "ci95": [0.31, 0.55], "n": 64, "chance": 0.5},
            "piqa/acc/memorized": {"value": 0.765, "ci95": [0.65, 0.85], "n": 64, "chance": 0.5, **mark},
            "nll": {"value": 4321.5, "ci95": None, "n": 1, "chance": None},
        },
        "paired": {
            "piqa/acc/memorized-baseline": {
                "delta": 0.3329, "ci95": [0.1, 0.5], "p_value": 0.00001, "n": 64, "test": "exact McNemar",
                **mark,
            }
        },
        "updates": {"memorized": {"cms/cms_fast": {"updates_applied": 7.5, "gate_hit": 8.0}}},
    }  # fmt: skip


@pytest.fixture(autouse=True)
def made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        registry, "EVALS", {"made": Entry("Made up", module="json"), "other": Entry("Other", module="json")}
    )


def written(out: Path, results: list[Result], comparison: Any = None) -> dict[str, str]:
    """The texts of both renderings."""
    pages.write_report(out, "run/4", ABOUT, results, out, comparison)
    page, markdown = (out / "report.html").read_text(), (out / "report.md").read_text()
    return {"html": html.unescape(re.sub(r"<[^>]*>", "|", page)), "md": markdown}


def test_every_figure_has_its_interval_count_and_chance(tmp_path: Path) -> None:
    texts = written(tmp_path, [Result("made", outcome())])
    assert "| piqa/acc | – | 0.4321 [0.31, 0.55] | 0.765 [0.65, 0.85] | 64 | 0.5 |" in texts["md"]
    assert "| nll | 4,322 | – | – | 1 | – |" in texts["md"]
    assert "| piqa/acc/memorized-baseline | 0.3329 [0.1, 0.5] | <0.0001 | 64 | exact McNemar |" in texts["md"]
    assert "| memorized, cms/cms_fast | 7.5 | 8 |" in texts["md"] and "data.sha256: d1" in texts["md"]
    for part in ("0.4321 [0.31, 0.55]", "0.765 [0.65, 0.85]", "4,322", "<0.0001", "exact McNemar", "7.5"):
        assert part in texts["html"]
    for text in texts.values():
        assert "Control reads as many tokens, but may write less where" in text
        assert "n = 1 to 64" in text and "LEAK" not in text and LEAK not in text


def test_a_leak_is_marked_in_tables_captions_and_plots(tmp_path: Path) -> None:
    texts = written(tmp_path, [Result("made", outcome(leak=True))])
    assert "0.765 [0.65, 0.85] LEAK" in texts["md"] and "0.3329 [0.1, 0.5] LEAK" in texts["md"]
    assert "0.4321 [0.31, 0.55] |" in texts["md"]
    assert re.search(rf"!\[Made up: .*{LEAK}\]\(plots/made-metrics.png\)", texts["md"])
    assert f"> **made: {LEAK}**" in texts["md"]
    page = (tmp_path / "report.html").read_text()
    assert "0.765 [0.65, 0.85] LEAK</td>" in page and re.search(rf'<img alt="Made up: [^"]*{LEAK}"', page)
    for leak in (True, False):
        metrics = outcome(leak)["metrics"]
        drawn = plots.metrics_figure(metrics)
        assert drawn is not None
        pages.plot_of("made", "metrics", drawn, "metrics", metrics.values())
        assert [text.get_text() for text in drawn.texts] == [LEAK] * leak


def test_the_mark_of_a_leak_covers_no_label() -> None:
    test = {"delta": -0.25, "ci95": [-0.5, 0.01], "leak": True}
    bottom = plots.differences_figure({"t/loss/memorized": test})
    assert bottom is not None
    labelled = Figure(figsize=(6, 2), layout="constrained")
    labelled.subplots().set_xlabel("tokens before, and more words up to the right end of the axis")
    for figure in (bottom, labelled):
        plots.mark_leak(figure)
        FigureCanvasAgg(figure).draw()
        (mark,) = [text for text in figure.texts if text.get_text() == LEAK]
        for axes in figure.axes:
            assert not mark.get_window_extent().overlaps(axes.get_tightbbox())


def test_the_overview_counts_the_items_of_models_only(tmp_path: Path) -> None:
    result = outcome()
    result["metrics"]["piqa/acc/majority_class"] = {"value": 0.2, "ci95": None, "n": 1221, "chance": 0.5}
    assert "| Made up | 4 | 64 |  | 2 |" in written(tmp_path, [Result("made", result)])["md"]


def test_the_comparison_is_reported_with_holms_values(tmp_path: Path) -> None:
    test = {"delta": -0.25, "ci95": [-0.5, 0.01], "p_value": 0.03, "p_holm": 0.06, "n": 9, "test": "paired t"}
    found = {
        "paired": {"t/loss/memorized": {**test, "leak": True}},
        "only_one": 3,
        "settings_differ": ["data"],
    }
    comparison = {
        "baseline": {"checkpoint": "base/checkpoints/9"},
        "evals": {"made": found, "other": {"problem": "no records"}},
    }
    for text in written(tmp_path, [Result("made", outcome())], comparison).values():
        assert "Checkpoint minus base/checkpoints/9" in text and "-0.25 [-0.5, 0.01] LEAK" in text
        assert "0.0300" in text and "0.0600" in text and "3 items only one of the two has answered" in text
        assert "the two differ in these settings too: data" in text and "other: no records" in text
        assert f"differences with 95 % intervals (n = 9); {LEAK}" in text
    assert (tmp_path / "plots" / "made-comparison.png").is_file()


def test_the_checkpoint_its_log_and_its_configuration_are_cited(tmp_path: Path) -> None:
    rows = [{"step": step, "loss": 5.0 - step, "eval_loss": 4.5 - step / 2} for step in (2, 4, 6)]
    (tmp_path / "metrics.jsonl").write_text("".join(map(dump_row, rows)))
    texts = written(tmp_path, [])
    for text in texts.values():
        assert (
            "aaaaaaaa" in text
            and "cccccccc" in text
            and "run/checkpoints/4" in text
            and "model.dim: 16" in text
        )
        assert f"Loss up to step 4, from {tmp_path.name}/metrics.jsonl" in text
    assert "| eval_loss | 2.5 |" in texts["md"] and "| loss | 1 |" in texts["md"], "not of step 6"
    (tmp_path / "metrics.jsonl").unlink()
    assert "There is no training log (metrics.jsonl) beside" in written(tmp_path, [])["md"]


def test_the_page_stands_alone_and_names_are_no_markup(tmp_path: Path) -> None:
    result = outcome()
    result["metrics"] = {"<b>|x/acc": {"value": 1.0, "ci95": None, "n": 1, "chance": None}}
    written(tmp_path, [Result("made", result), Result("other", problem="<i>broken</i>", failed=True)])
    page = (tmp_path / "report.html").read_text()
    assert not re.search(r'(?:src|href)="(?!data:|\w+\.json)', page) and "<b>|x" not in page
    assert "&lt;i&gt;broken&lt;/i&gt;" in page and "| <b>\\|x/acc |" in (tmp_path / "report.md").read_text()


def test_a_plot_that_cannot_be_drawn_takes_no_figure_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = SimpleNamespace(figures=lambda outcome: {"p": 1 / 0})
    monkeypatch.setattr(json, "evaluate", draws, raising=False)
    text = written(tmp_path, [Result("made", outcome())])["md"]
    assert "The plots of made could not be drawn (ZeroDivisionError: " in text and "0.4321 [0.31" in text


def test_the_index_plots_headlines_and_links_reports_and_comparisons(tmp_path: Path) -> None:
    entries = {f"run/{n}": Reported(f"run-{n}", [Result("made", outcome(leak=True))]) for n in (2, 4)}
    steps = {"run/2": 2, "run/4": 4}
    pages.write_index(tmp_path, entries, baseline=("base/9", "baseline"), steps=steps)
    page, markdown = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    alt = f"Made up: piqa/acc over steps, with 95 % intervals (n = 64); {LEAK}"
    assert f"![{alt}](plots/made-checkpoints.png)" in markdown and f'<img alt="{alt}" src="data:' in page
    assert (tmp_path / "plots" / "made-checkpoints.png").is_file()
    for text, path in {
        "run/4: report": "run-4/report.html",
        "run/4 against base/9": "run-4/report.html#against-the-baseline",
        "base/9, the baseline: report": "baseline/report.html",
    }.items():
        assert f"[{text}]({path})" in markdown and f'<a href="{path}">{text}</a>' in page
    pages.write_report(tmp_path, "run/4", ABOUT, [], tmp_path, {"baseline": ABOUT, "evals": {}})
    assert '<h2 id="against-the-baseline">' in (tmp_path / "report.html").read_text()
    pages.write_index(tmp_path, {"run/4": entries["run/4"]})
    text = (tmp_path / "report.md").read_text()
    assert "](plots/" not in text and "against" not in text, "one checkpoint has nothing to compare"


@pytest.mark.parametrize(
    ("keys", "wanted", "shown"),
    [
        ("a/acc/baseline a/nll/baseline b/acc/baseline b/acc/majority_class", "", "a/acc b/acc"),
        ("p/x/on all/y/on all/x/on half/x/on", "half/x all/x", "half/x all/x"),
        ("a/acc_step/on a/acc/on b/acc/on", "acc", "a/acc b/acc"),
        ("nll", "absent", "nll"),
        (" ".join(f"{task}/acc/arm{arm}" for task in "abc" for arm in range(3)), "", "a/acc b/acc"),
        (" ".join(f"a/acc/arm{arm}" for arm in range(9)), "", "a/acc"),
    ],
)
def test_headlines_are_those_named_or_of_the_first_metric(keys: str, wanted: str, shown: str) -> None:
    found = plots.headlines({"run/2": dict.fromkeys(keys.split(), {})}, wanted.split())
    assert list(found) == shown.split() and sum(map(len, found.values())) <= 6
    assert "majority_class" not in str(found)


def test_checkpoints_of_one_run_stand_over_their_steps_and_of_several_side_by_side() -> None:
    metrics = {
        name: {"a/acc/baseline": {"value": value, "ci95": [value - 0.1, value + 0.2], "n": 9, "chance": 0.5}}
        for name, value in (("run/2", 0.4), ("run/10", 0.6))
    }
    metrics["run/10"]["a/acc/none"] = {"value": None, "ci95": None, "n": 0}
    shown = plots.headlines(metrics)
    for steps, places in ({"run/2": 2, "run/10": 10}, [2, 10]), (None, [0, 1]):
        (axes,) = plots.checkpoints_figure(metrics, shown, steps).axes
        drawn = [line.get_xydata() for line in axes.lines]
        middles = np.concatenate([points for points in drawn if len(set(points[:, 0])) == 2])
        assert np.allclose(middles, [[places[0], 0.4], [places[1], 0.6], [0, 0.5], [1, 0.5]], atol=0.1)
        bars = [bar for collection in axes.collections for bar in collection.get_segments()]
        assert any(np.allclose(bar[:, 1], [0.5, 0.8]) for bar in bars)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["run/2", "run/10"]
