"""The pass key's smoke: what its arms memorize, what it measures, when it fails."""

import dataclasses
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl.testing import flagsaver

from hope_jax import cli
from hope_jax.evals import passkey_smoke
from hope_jax.evals.passkey_smoke import CONTROLS, make_prompts, measure, summarize, with_key
from hope_jax.evals.reading.memorize import Memorized, Rule
from hope_jax.evals.reading.subject import Subject
from tests.evals.subjects import subject

ARMS = ("baseline", "memorized", *CONTROLS)


def test_texts_differ_in_the_key_alone() -> None:
    model = subject()
    tokenizer, prompts = model.trained.tokenizer, make_prompts(model, 4, 20, seed=7)
    for prompt in prompts:
        right, other, shuffled = (with_key(tokenizer, prompt, key) for key in prompt[:3])
        told = tokenizer.decode(right[10:-10].tolist())
        digits = tokenizer.decode(prompt.right.tolist()).strip()
        assert told.strip() == f"The pass key is {digits}. Remember it. {digits} is the pass key."
        assert len(right) == len(other) == len(shuffled)
        assert (right != other).any() and (right != shuffled).any()
        assert sorted(prompt.right) == sorted(prompt.shuffled) != sorted(prompt.other)
        assert (right != other).sum() == 2 * (prompt.right != prompt.other).sum()
    assert len({tuple(prompt.filler) for prompt in prompts}) == 4
    again, others = make_prompts(model, 4, 20, seed=7), make_prompts(model, 4, 20, seed=8)
    assert all((a.filler == b.filler).all() for a, b in zip(prompts, again, strict=True))
    assert tuple(others[0].right) != tuple(prompts[0].right)


def test_a_memorized_key_is_likelier() -> None:
    model = subject()
    prompts = make_prompts(model, 4, 20, seed=1)
    found = measure(model, Rule(steps=8, surprise_threshold=0.0), prompts, seed=1)
    for control in ("baseline", "other_key", "unrelated"):
        assert (found[f"nll/{control}"] - found["nll/memorized"]).mean() > 0.01


def test_only_memories_know_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """With memories that were not written all arms are one: nothing else comes from the texts."""
    model, given = subject(), []

    def forgetful(*_: Any) -> Any:
        def memorize(texts: list[np.ndarray]) -> Memorized:
            given.append(texts)
            trained = model.trained
            return Memorized(trained.streamer.model.init_fast_state(trained.params, len(texts)), {})

        return memorize

    monkeypatch.setattr(passkey_smoke, "Memorizer", forgetful)
    found = measure(model, Rule(), make_prompts(model, 4, 20, seed=1), seed=1)
    for arm in ARMS:
        np.testing.assert_array_equal(found[f"nll/{arm}"], found["nll/baseline"])
        np.testing.assert_array_equal(found[f"choice/{arm}"], found["choice/baseline"])
    assert len(given) == 4 and len({len(text) for texts in given for text in texts}) == 1


def made_up(gains: list[float]) -> dict[int, dict[str, np.ndarray]]:
    """Four keys of each seed: controls at 10 nats, `memorized` lower by the seed's gain on average."""
    by_seed = {}
    for seed, gain in enumerate(gains):
        nll: dict[str, np.ndarray] = {f"nll/{arm}": np.full(4, 10.0) for arm in ARMS}
        nll["nll/memorized"] = 10 - gain + np.array([-3.0, 3.0, 1.0, -1.0])
        by_seed[seed] = nll | {f"choice/{arm}": np.array([True, False, True, True]) for arm in ARMS}
    return by_seed


def test_intervals_are_over_the_means_of_seeds() -> None:
    found = summarize(made_up([0.1, 0.2, 0.3]))
    gain = found["metrics"]["gain/other_key"]
    assert gain["value"] == pytest.approx(0.2) and gain["n"] == 3
    # Student's t of 2 degrees of freedom at 97.5 %: 4.3027
    assert gain["ci95"] == pytest.approx([0.2 - 4.3027 * 0.1 / 3**0.5, 0.2 + 4.3027 * 0.1 / 3**0.5], abs=1e-5)
    assert passkey_smoke.failed(found["metrics"]) == list(CONTROLS)
    assert found["per_seed"]["2"]["gain/unrelated"] == pytest.approx(0.3)
    assert found["metrics"]["choice/memorized"]["chance"] == 0.5
    assert not passkey_smoke.failed(summarize(made_up([0.19, 0.2, 0.21]))["metrics"])
    below = made_up([0.19, 0.2, 0.21])
    below[0]["nll/shuffled"] -= 0.5
    assert passkey_smoke.failed(summarize(below)["metrics"]) == ["shuffled"]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    ours = logging.getLogger("hope_jax")
    before = ours.handlers, ours.propagate, ours.level

    def run(*arguments: object) -> tuple[int, str, str]:
        with flagsaver.flagsaver(), pytest.raises(SystemExit) as caught:
            cli.run_command(passkey_smoke.main, ["passkey_smoke", *map(str, arguments)])
        return (int(caught.value.code or 0), *capsys.readouterr())

    yield run
    ours.handlers, ours.propagate = before[:2]
    ours.setLevel(before[2])


@pytest.mark.parametrize(("gains", "code"), [([0.19, 0.2, 0.21], 0), ([0.0, 0.0, 0.1], 1)])
def test_the_command_fails_without_a_gain(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gains: list[float], code: int
) -> None:
    found = made_up(gains)
    monkeypatch.setattr(passkey_smoke, "open_seeds", lambda paths: dict.fromkeys(found, subject()))
    monkeypatch.setattr(passkey_smoke, "measure", lambda model, rule, prompts, seed: found[seed])
    done, shown, errors = command("--checkpoints=a,b,c", f"--out={tmp_path}/o.json", "--keys=2", "--filler=8")
    assert done == code and (
        "gain over other_key or shuffled or unrelated is not above zero" in errors
    ) == bool(code)
    assert "gain/shuffled" in shown
    result = json.loads((tmp_path / "o.json").read_text())
    assert result["passed"] == (not code) and result["asserted"] == [f"gain/{c}" for c in CONTROLS]
    assert list(result["per_seed"]) == list(result["subjects"]) == ["0", "1", "2"]
    assert result["settings"]["keys"] == 2 and result["settings"]["memorize"]["steps"] == 4


def test_runs_must_be_of_three_seeds(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(path: Path) -> Subject:
        config, name = subject().config, path.name
        train = dataclasses.replace(config.train, seed=int(name))
        return subject()._replace(config=dataclasses.replace(config, train=train))

    monkeypatch.setattr(passkey_smoke, "open_subject", opened)
    for paths, message in (("1,2", "at least 3 runs"), ("1,2,1", "train.seed=1")):
        code, _, errors = command(f"--checkpoints={paths}")
        assert code == 2 and message in errors
    assert list(passkey_smoke.open_seeds([Path("1"), Path("2"), Path("3")])) == [1, 2, 3]
