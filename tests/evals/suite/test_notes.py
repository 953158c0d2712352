"""What reports say of the data, above the figures: made up, of another origin, missing, cut."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hope_jax.evals.suite import pages
from hope_jax.evals.suite.registry import Result
from hope_jax.evals.suite.run import Run, outcome
from hope_jax.evals.tasks import continual, niah, passkey, perplexity, zeroshot
from tests.evals.subjects import subject
from tests.evals.tasks.test_retrieval import Knows
from tests.evals.tasks.test_zeroshot import without_model
from tests.evals.tasks.zeroshot_files import write_files

TEXT = "One two three. " * 30


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Answers by rule instead of by the model."""

    def rows(_: Any, given: list[np.ndarray], fast: Any = None, **more: Any) -> list[np.ndarray]:
        return [np.full(len(row), -1.0) for row in given]

    monkeypatch.setattr(perplexity, "token_log_probs", rows)
    Knows(monkeypatch, wrong=False)
    without_model(monkeypatch)
    (tmp_path / "own.txt").write_text(TEXT)
    write_files(tmp_path / "data", "piqa", "lambada", "wikitext")
    options = {"niah_tasks": ["niah_single_2"], "niah_lengths": [700], "passkey_lengths": [200]}
    options |= {"perplexity_tokens": 64, "zeroshot_data": str(tmp_path / "data")}
    return Run(subject(), tmp_path, limit=2, options=options)


def reported(run: Run, evaluation: Any, **options: Any) -> str:
    """The section of report.md above its first table or plot."""
    found = evaluation.evaluate(dataclasses.replace(run, options={**run.options, **options}))
    name, about = evaluation.NAME, {**run.subject.about, "checkpoint": "x"}
    pages.write_report(run.out, "x", about, [Result(name, found)], run.out)
    text = (run.out / "report.md").read_text()
    section = text.split(f"## {pages.registry.EVALS[name].title}\n", 1)[1]
    return section.split("\n|")[0].split("\n![")[0]


def test_needles_are_labelled(run: Run) -> None:
    section = reported(run, niah)
    assert "RULER-style, other haystack: prose of the embedded corpus" in section
    assert (
        "trained on the embedded corpus this prose is training text; this one's data.source is 'e" in section
    )
    section = reported(run, niah, niah_haystack=str(run.out / "own.txt"))
    assert "RULER-style, other haystack: prose of niah_haystack" in section and "training text" not in section


def test_passkeys_are_made_up(run: Run) -> None:
    assert "Made-up data: random keys in filler lines" in reported(run, passkey)


def test_the_texts_of_perplexities_are_named(run: Run) -> None:
    section = reported(run, perplexity)
    assert "held-out documents of the embedded corpus" in section
    assert f"data.source is {run.subject.config.data.source!r}" in section and "tokenizer" in section
    section = reported(run, perplexity, perplexity_text=str(run.out / "own.txt"))
    assert "held-out" not in section and "tokenizer" in section


def test_zero_shot_data_are_described(run: Run) -> None:
    section = reported(run, zeroshot, zeroshot_note="made-up items, not PIQA")
    assert "About the data: made-up items, not PIQA." in section
    for name in ("boolq", "arc_easy"):
        assert f"{name} is skipped: put its data" in section
    assert "piqa is skipped" not in section and "No request was truncated." in section
    section = reported(run, zeroshot, zeroshot_max_length=20)
    found = zeroshot.evaluate(dataclasses.replace(run, options={**run.options, "zeroshot_max_length": 20}))[
        "truncated"
    ]
    cut = f"piqa {found['piqa']} of 4, lambada 0 of 2, wikitext 2 of 2."
    assert found["piqa"] and f"Requests truncated to zeroshot_max_length=20: {cut}" in section
    assert "About the data" not in section


def test_arms_that_did_not_write_alike_are_named(run: Run) -> None:
    def notes(memorized: float, control: float) -> list[str]:
        wrote = {"memorized": memorized, "control": control}
        updates = {
            arm: {"cms/fast": {"updates_applied": n}, "self_mod/memory": {"updates_applied": 9.0}}
            for arm, n in wrote.items()
        }
        return outcome(run, "x", settings={}, metrics={}, seconds=1, updates=updates, notes=["first"])[
            "notes"
        ]

    assert notes(10, 9.1) == ["first"]
    first, unlike = notes(9.4, 3.8)
    assert (
        first == "first" and "wrote 3.8 times an item in cms/fast where the memorized arm wrote 9.4" in unlike
    )
    assert "notes" not in outcome(run, "x", settings={}, metrics={}, seconds=1)


def test_one_checkpoint_forgets_nothing(run: Run) -> None:
    options = {"segment_bytes": 4096, "block_tokens": 15}
    found = continual.evaluate(dataclasses.replace(run, limit=1, options=options))
    assert not any("forgetting" in key for key in found["metrics"])
    assert "there is neither forgetting nor transfer; give a run with more" in found["notes"][0]


def test_an_index_of_several_checkpoints_has_the_notes_of_each(tmp_path: Path) -> None:
    results = [
        Result("passkey", {"metrics": {"p/choice": {"value": v}}, "notes": [f"note {v}"]}) for v in (1, 2)
    ]
    of = {"a": pages.Reported("a", results[:1]), "b": pages.Reported("b", results[1:])}
    pages.write_index(tmp_path, of)
    text = (tmp_path / "report.md").read_text()
    assert text.index("a: note 1") < text.index("b: note 2") < text.index("| p/choice | 1 | 2 |")
