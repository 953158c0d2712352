"""Evaluation of synthetic tasks: hand-made predictors, no leak of answers, the ordinary command, resuming."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.core.errors import BundleError, ConfigError, DataError
from hope_jax.core.types import NO_TARGET
from hope_jax.data.synthetic import TASKS, Example
from hope_jax.data.synthetic.rows import drawn
from hope_jax.evals.reading.subject import Subject, open_subject
from hope_jax.evals.suite import comparison, registry
from hope_jax.evals.suite.run import ARMS, Run
from hope_jax.evals.suite.session import run_all
from hope_jax.evals.tasks import synthetic
from hope_jax.release.bundle import write as write_bundle
from hope_jax.storage.trained import read_text
from tests.checkpoints import small_config
from tests.evals.subjects import as_if_slow
from tests.evals.subjects import subject as text_subject

CONFIG = """
from hope_jax.config.presets import synthetic_config

def get_config():
    config = synthetic_config("parity", seq_len=8, vocab_size=4)
    config.model.update({"dim": 16, "num_layers": 1, "heads": 2})
    config.data.task_options = {"longest": 8}
    config.data.batch_size = 4
    config.train.update({"steps": 4})
    config.optim.update({"warmup_steps": 0, "schedule": "constant"})
    config.eval.update({"every": 2, "batches": 2})
    config.checkpoint.every = 2
    return config
"""


def launch(config: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hope_jax.launch", f"--config={config}", *flags],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two steps that the same command continued to four."""
    folder = tmp_path_factory.mktemp("synthetic")
    config = folder / "tiny.py"
    config.write_text(CONFIG)
    for steps in (2, 4):
        done = launch(config, f"--workdir={folder / 'run'}", f"--config.train.steps={steps}")
        assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.nightly
def test_a_resumed_run_reads_on_where_it_stopped(trained: Path) -> None:
    rows = [json.loads(line) for line in (trained / "run" / "metrics.jsonl").read_text().splitlines()]
    task = TASKS["parity"](longest=8)
    asked = np.cumsum([len(synthetic.asked(drawn(task, "train", 0, row))) for row in range(16)])
    assert {row["step"]: row["tokens"] for row in rows} == {step: asked[4 * step - 1] for step in (1, 2, 4)}
    assert asked[15] - asked[7] != asked[7], "another stream would count as many"


def run_of(folder: Path, subject: Subject, **options: object) -> Run:
    return Run(subject, folder, limit=20, batch_size=8, records=True, options=options)


def test_every_split_is_measured_with_its_chance(trained: Path, tmp_path: Path) -> None:
    result = synthetic.evaluate(run_of(tmp_path, open_subject(trained / "run")))
    metrics = result["metrics"]
    names = ("bin0_positions", "bin0_strings", "bin1_positions", "bin1_strings")
    assert set(metrics) == {f"parity/{name}/baseline" for name in names}
    longer = metrics["parity/bin1_strings/baseline"]
    assert longer["n"] == 20 and 0 <= longer["value"] <= 1 and 0 < longer["chance"] < 0.02
    assert 0.45 < metrics["parity/bin1_positions/baseline"]["chance"] < 0.65
    right = {item["key"]: all(item["hits"]) for item in result["items"]}
    assert len(right) == 40, "a key is of one string"
    scores = comparison.scores(result)
    assert set(scores) == set(metrics), "comparisons name tests as results name figures"
    assert {**scores["parity/bin0_strings/baseline"], **scores["parity/bin1_strings/baseline"]} == right
    assert np.mean([*scores["parity/bin1_positions/baseline"].values()]) == pytest.approx(
        metrics["parity/bin1_positions/baseline"]["value"]
    )
    compared = comparison.compare(result, result)
    assert compared["paired"]["parity/bin0_strings/baseline"]["test"] == "exact McNemar"
    lengths = [len(item["hits"]) for item in result["items"] if item["split"] == "bin1"]
    assert len(lengths) == 20 and min(lengths) > 8 and max(lengths) <= 16
    # Strings of 1 to 8 and of 9 to 16 symbols: two steps of ten tokens are too few for a curve.
    assert {step["to"] for steps in result["by_length"].values() for step in steps} == {10, 20}
    assert not synthetic.evaluate.figures(result)
    more = {"to": 30, "strings": result["by_length"]["bin1"][-1]["strings"]}
    longer_ones = {**result["by_length"], "bin1": [*result["by_length"]["bin1"], more]}
    assert set(synthetic.evaluate.figures({**result, "by_length": longer_ones})) == {"synthetic"}
    assert json.loads(json.dumps(result)) == result
    everything = dataclasses.replace(run_of(tmp_path, open_subject(trained / "run")), arms=ARMS)
    asked_for = synthetic.evaluate(everything)
    assert asked_for["metrics"] == metrics and asked_for["settings"]["arms"] == ["baseline"]
    assert "Memorization does not apply" in asked_for["notes"][0] and not result["notes"]


def test_a_killed_evaluation_goes_on(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject, calls, answers = open_subject(trained / "run"), [], synthetic.answers

    def failing(*arguments: object, **options: bool) -> list[np.ndarray]:
        calls.append(arguments[1])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return answers(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(synthetic, "answers", failing)
    with pytest.raises(KeyboardInterrupt):
        synthetic.evaluate(run_of(tmp_path, subject))
    spent = as_if_slow(tmp_path)
    resumed = synthetic.evaluate(run_of(tmp_path, subject))
    assert resumed["seconds"] > spent
    assert len(calls) == 4 + 3  # three of bin0 and none of bin1 were done
    whole = synthetic.evaluate(run_of(tmp_path, subject))
    assert resumed["metrics"] == whole["metrics"]


def test_hand_made_predictors_score_what_they_should(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = open_subject(trained / "run")

    def perfect(_: Subject, examples: list[Example], *__: int, **___: bool) -> list[np.ndarray]:
        return [synthetic.asked(example) for example in examples]

    def constant(_: Subject, examples: list[Example], *__: int, **___: bool) -> list[np.ndarray]:
        return [np.full(len(synthetic.asked(example)), 2) for example in examples]

    found = {}
    for predictor in (perfect, constant):
        (tmp_path / predictor.__name__).mkdir()
        monkeypatch.setattr(synthetic, "answers", predictor)
        found[predictor] = synthetic.evaluate(run_of(tmp_path / predictor.__name__, subject))
    assert all(metric["value"] == 1 for metric in found[perfect]["metrics"].values())
    metrics = found[constant]["metrics"]
    items = [item for item in found[constant]["items"] if item["split"] == "bin0"]
    shares = [np.mean(item["hits"]) for item in items]
    assert metrics["parity/bin0_positions/baseline"]["value"] == pytest.approx(np.mean(shares))
    assert metrics["parity/bin0_strings/baseline"]["value"] == np.mean([share == 1 for share in shares])
    assert metrics["parity/bin1_strings/baseline"]["value"] == 0


VARIANTS = ("hope_attention", pytest.param("hope_selfmod", marks=pytest.mark.nightly))


@pytest.mark.parametrize("variant", VARIANTS)
def test_answers_of_later_positions_do_not_leak(variant: str) -> None:
    """Without targets, what is answered depends on the tokens up to there alone."""
    subject = text_subject(variant)
    tokens, rng = rng_tokens(40), np.random.default_rng(0)
    first = Example(tokens, rng.integers(0, 9, 40), np.zeros(40, np.int32))
    other = first._replace(targets=(first.targets + 1) % 9)
    longer = first._replace(tokens=np.concatenate([tokens[:21], tokens[21:] + 1]))
    found = synthetic.answers(subject, [first, other, longer], 4, targets=False)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0][:21], found[2][:21])
    assert (found[0] != found[2]).any() and len(set(found[0].tolist())) > 1


def rng_tokens(count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 9, count)


@pytest.mark.parametrize("targets", [False, True])
def test_taught_memories_are_written_with_answers_only_if_asked(
    targets: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = text_subject()  # its CMS writes every 4 tokens; the online chunk has 16
    streamer = subject.trained.streamer
    example = Example(np.arange(40) % 9, np.arange(40) % 5, np.zeros(40, np.int32))
    sparse = np.where(np.arange(40) == 3, example.targets, NO_TARGET)
    seen: list[float] = []
    original = type(streamer).write_chunks

    def spy(self: object, params: object, state: object, batch: object) -> object:
        logits, state = original(self, params, state, batch)
        deltas = jax.tree.leaves([level.delta for fast in state.fast for level in fast["cms"].values()])
        seen.append(float(sum(jnp.abs(leaf).sum() for leaf in deltas)))
        return logits, state

    monkeypatch.setattr(type(streamer), "write_chunks", spy)
    synthetic.answers(subject, [example._replace(targets=sparse)], 4, targets=targets)
    assert (seen[0] > 0) == targets


def test_groups_are_measured_by_distance() -> None:
    tokens = np.zeros(6, np.int32)
    examples = [Example(tokens, np.array([-1, 4, -1, 5, -1, 4]), np.array([0, 2, 0, 3, 0, 8]))] * 3
    hits = [np.array([True, False, True])] * 3
    found = synthetic.measured("mqar", "test", TASKS["mqar"](), synthetic.Split(examples, hits))
    by_group = {key: metric["value"] for key, metric in found.items() if "distance" in key}
    assert by_group == {
        "mqar/test_distance_to_2/baseline": 1,
        "mqar/test_distance_to_4/baseline": 0,
        "mqar/test_distance_to_8/baseline": 1,
    }
    assert found["mqar/test_positions/baseline"]["chance"] == pytest.approx(2 / 3)


def test_text_is_refused_where_there_are_symbols_and_the_other_way_round(
    trained: Path, tmp_path: Path
) -> None:
    subject = open_subject(trained / "run")
    stream = subject.trained.streamer.begin(subject.trained.params, 1, 8)
    with pytest.raises(DataError, match="trained on symbols"):
        read_text(subject.trained, stream, "a text", targets=True)
    with pytest.raises(BundleError, match="trained on symbols"):
        write_bundle(tmp_path / "bundle", trained / "run")
    assert not registry.unfit("synthetic", subject) and not registry.unfit("passkey", text_subject())
    run = Run(subject, tmp_path)
    (refused,) = [
        result for result in run_all(run, ["passkey"]) if result.problem.startswith("not run: it is")
    ]
    assert (refused.name, refused.failed) == ("passkey", False)
    assert refused.problem.endswith("models of text, and this reads 'synthetic:parity'")
    with pytest.raises(ConfigError, match="not on a synthetic task; evaluate a run of configs/synthetic"):
        synthetic.evaluate(Run(text_subject(), tmp_path))


def test_a_wrong_task_is_found_before_anything_starts(trained: Path, tmp_path: Path) -> None:
    refused = launch(
        trained / "tiny.py", f"--workdir={tmp_path / 'w'}", "--config.data.source=synthetic:party"
    )
    assert refused.returncode == 2 and "did you mean parity?" in refused.stderr
    assert "Traceback" not in refused.stderr and not (tmp_path / "w").exists()
    assert small_config().data.task_options == {}
