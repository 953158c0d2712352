"""Continual and class-incremental evaluations of small models: what arms share, kills, bad options."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hope_jax.core.errors import ConfigError, DataError
from hope_jax.data.tokenizer import Tokenizer
from hope_jax.evals import statistics
from hope_jax.evals.reading.memorize import Rule
from hope_jax.evals.reading.reader import Reader
from hope_jax.evals.suite import comparison
from hope_jax.evals.suite.run import ARMS, Run
from hope_jax.evals.tasks import adaptation, class_incremental, classifier, continual
from hope_jax.evals.tasks.classifier import Format, in_context_examples, score_labels
from hope_jax.evals.tasks.intents import tasks_of
from hope_jax.evals.tasks.segments import blocks, load_segments
from tests.evals.subjects import as_if_slow, subject
from tests.evals.tasks.intents_data import write_banking, write_clinc

SEGMENTS = {"segment_bytes": 1024, "segment_names": ["kjv", "austen"]}


def a_run(out: Path, limit: int | None = 2, arms: tuple[str, ...] = ARMS[:1], **options: Any) -> Run:
    return Run(subject(), out, limit=limit, batch_size=4, arms=arms, records=True, options=options)


def killed(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, after: int) -> None:
    """Makes a function fail at its call number `after`."""
    real, calls = getattr(owner, name), iter(range(10**6))

    def failing(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == after:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, failing)


def forget(run: Run) -> None:
    """Removes what evaluations have left for a later start."""
    for path in run.out.glob("*.partial.jsonl"):
        path.unlink()


def same_after_a_kill(
    monkeypatch: pytest.MonkeyPatch,
    evaluate: Callable[[Run], dict],
    run: Run,
    owner: Any,
    name: str,
    after: int,
) -> dict[str, Any]:
    """The outcome, which is also that of a run that was killed and started again."""
    whole = evaluate(run)
    forget(run)
    with monkeypatch.context() as patch:
        killed(patch, owner, name, after)
        with pytest.raises(KeyboardInterrupt):
            evaluate(run)
    (left,) = run.out.glob("*.partial.jsonl")
    assert len(left.read_text().splitlines()) > 2
    before = as_if_slow(run.out)
    again = evaluate(run)
    assert whole["seconds"] < before < again["seconds"], "of all starts"
    assert again["metrics"] == whole["metrics"] and again["paired"] == whole["paired"]
    return whole


def test_adaptation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = a_run(tmp_path, learning_rates=[1e-3], **SEGMENTS)
    found = same_after_a_kill(monkeypatch, adaptation.evaluate, run, Reader, "losses", 12)
    read = found["stream_losses"]
    assert read["carried"][0] == read["reset"][0] != read["no_writes"][0]
    assert read["carried"][1] != read["reset"][1]
    start, after = found["held_out_start"], found["held_out_after"]
    assert all(row == start for row in after["no_writes"])
    assert after["carried"][0] == after["reset"][0] != start
    # A block is measured before it teaches: AdamW's first loss is that of the model as it is.
    assert read["adamw"][0][0] == pytest.approx(read["no_writes"][0][0], rel=1e-5)
    assert set(adaptation.evaluate.figures(found)) == {"adaptation_stream", "adaptation_held_out"}
    metric = found["metrics"]["stream/nats_per_token/carried"]
    assert metric["value"] == pytest.approx(np.mean([np.mean(row) for row in read["carried"]]))
    tokenizer, text = run.subject.trained.tokenizer, load_segments(SEGMENTS, run.subject.config, 0)[0].text
    byte = found["metrics"]["stream:kjv/nats_per_byte/carried"]["value"]
    assert byte == pytest.approx(
        np.mean(read["carried"][0]) * len(tokenizer.encode(text)) / len(text.encode())
    )
    assert found["costs"]["adamw"]["learning_rate"] == 1e-3
    scores = comparison.scores(found)
    for method in adaptation.METHODS:
        blocks_of = [*scores[f"stream:kjv/nats_per_token/{method}"].values()]
        assert blocks_of == read[method][0]
        kept = [*scores[f"held_out:austen/nats_per_token/{method}"].values()]
        assert np.mean(kept) == pytest.approx(after[method][-1][1])
        assert len(scores[f"stream/nats_per_token/{method}"]) == sum(map(len, read[method]))
    tests = comparison.compare(found, found)["paired"]
    assert len(tests) == 4 * 6 and "held_out/nats_per_token/adamw" in tests
    assert found["updates"]["carried"]["cms/fast"]["updates_applied"] > 0
    assert (
        found["updates"]["no_writes"]["cms/fast"]["updates_applied"] == 0 and "adamw" not in found["updates"]
    )


def test_segments_by_checkpoints(tmp_path: Path) -> None:
    model = subject()
    run = a_run(tmp_path, limit=2, **SEGMENTS, checkpoints=[str(model.trained.path)] * 2)
    found = continual.evaluate(run)
    (kjv, _) = load_segments(SEGMENTS, model.config, 0)
    own = blocks(model.trained.tokenizer.encode(kjv.text), 31)[1:3]
    reader, params = Reader(model), model.trained.params
    alone = [reader.read_on(params, reader.start(params), [row])[0][0] for row in own]
    naive = -np.mean([row.mean() for row in alone])
    for cell in found["table"]["baseline"]["kjv"]:
        assert cell["value"] == pytest.approx(naive, rel=1e-4)
    assert found["metrics"]["kjv/nats_per_token/baseline"]["value"] == pytest.approx(naive, rel=1e-4)
    # Twice the same checkpoint forgets nothing.
    assert found["metrics"]["all/forgetting/baseline"] == {
        "value": 0.0,
        "ci95": [0.0, 0.0],
        "n": 4,
        "chance": None,
    }
    assert set(continual.evaluate.figures(found)) == {"continual_baseline", "continual_forgetting_baseline"}
    assert found["forgetting"]["baseline"]["all"][0] is None
    assert found["forgetting"]["baseline"]["all"][1] == found["metrics"]["all/forgetting/baseline"]
    assert as_if_slow(tmp_path) < continual.evaluate(run)["seconds"]
    single = continual.evaluate(a_run(tmp_path, limit=2, **SEGMENTS))
    assert len(single["checkpoints"]) == 1 and "all/forgetting/baseline" not in single["metrics"]


@pytest.mark.nightly
def test_memorization_arms_of_segments(tmp_path: Path) -> None:
    found = continual.evaluate(a_run(tmp_path, arms=ARMS, **SEGMENTS))
    metrics, paired = found["metrics"], found["paired"]
    assert set(paired) == {
        f"{name}/nats_per_token/memorized-{other}"
        for name in ("kjv", "austen", "all") for other in ("baseline", "control")
    }  # fmt: skip
    assert found["updates"]["memorized"]
    for other in ("baseline", "control"):
        means = [metrics[f"all/nats_per_token/{arm}"]["value"] for arm in ("memorized", other)]
        assert paired[f"all/nats_per_token/memorized-{other}"]["delta"] == pytest.approx(means[0] - means[1])
    compared = comparison.compare(found, found)["paired"]
    assert {name for name, test in compared.items() if test.get("pooled")} == {
        f"all/nats_per_token/{arm}" for arm in ARMS
    }


def test_memorization_is_tested_over_all_segments_block_by_block() -> None:
    rng = np.random.default_rng(0)
    sizes = {"a": 5, "b": 9}
    losses = {
        arm: {name: rng.normal(shift, 1, n) for name, n in sizes.items()}
        for arm, shift in (("baseline", 0.0), ("memorized", -1.0), ("control", -0.5))
    }
    tables = {arm: {name: row[None] for name, row in table.items()} for arm, table in losses.items()}
    found = continual._over_all(tables)
    assert set(found) == {f"all/nats_per_token/memorized-{other}" for other in ("baseline", "control")}
    for other in ("baseline", "control"):
        test = found[f"all/nats_per_token/memorized-{other}"]
        pairs = list(zip(losses["memorized"].values(), losses[other].values(), strict=True))
        assert test["delta"] == pytest.approx(np.mean([np.mean(a - b) for a, b in pairs]))
        assert test["n"] == 14 and test == statistics.paired_over(pairs).as_json()
    assert continual._over_all({"baseline": tables["baseline"]}) == {}


def test_class_incremental(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_clinc(tmp_path)
    run = a_run(tmp_path, intents=str(tmp_path), learning_rates=[1e-3])
    found = same_after_a_kill(monkeypatch, class_incremental.evaluate, run, classifier, "score_labels", 5)
    items = {item["key"]: item for item in found["items"]}
    assert [items[f"clinc/carried/{i}"]["classes"] for i in range(3)] == [2, 4, 6]
    for field in ("raw", "pmi", "chosen"):
        assert items["clinc/carried/0"][field] == items["clinc/reset/0"][field]
    assert [len(part) for part in items["clinc/adamw/2"]["raw"]] == [2, 2, 2]
    metrics = found["metrics"]
    assert metrics["clinc/accuracy_raw_step_2/carried"]["chance"] == 1 / 4
    hits = sum(items["clinc/carried/2"]["pmi"], [])
    assert metrics["clinc/accuracy_pmi/carried"]["value"] == np.mean(hits)
    steps = [metrics[f"clinc/accuracy_raw_step_{i}/reset"]["value"] for i in (1, 2, 3)]
    average = metrics["clinc/average_incremental_accuracy_raw/reset"]
    assert average["value"] == pytest.approx(np.mean(steps))
    assert average["chance"] == pytest.approx((1 / 2 + 1 / 4 + 1 / 6) / 3)
    scores = comparison.scores(found)
    assert set(scores) == {
        f"clinc/accuracy_{kind}{step}/{arm}"
        for kind in ("raw", "pmi") for step in ("_step_1", "_step_2", "") for arm in class_incremental.ARMS
    }  # fmt: skip
    for name, hits_of in scores.items():
        assert len(hits_of) == metrics[name]["n"] and np.mean([*hits_of.values()]) == metrics[name]["value"]
    assert comparison.compare(found, found)["paired"]["clinc/accuracy_raw/adamw"]["test"] == "exact McNemar"
    assert set(class_incremental.evaluate.figures(found)) == {"class_incremental_clinc"}
    written = found["updates"]["clinc"]
    assert set(written) == {"carried", "reset", "control"}
    assert all(levels["cms/fast"]["updates_applied"] > 0 for levels in written.values())
    assert written["control"]["cms/fast"]["chunk_tokens"] == written["carried"]["cms/fast"]["chunk_tokens"]


@pytest.mark.nightly
def test_the_rule_of_memorization_holds_for_what_is_read(tmp_path: Path) -> None:
    """Behind a closed gate what is read is not learned."""
    write_clinc(tmp_path)
    closed = Rule(surprise_threshold=1e9)
    run = replace(a_run(tmp_path, intents=str(tmp_path), learning_rates=[1e-3]), memorize=closed, limit=1)
    found = class_incremental.evaluate(run)
    items = {item["key"]: item for item in found["items"]}
    assert items["clinc/carried/2"]["chosen"] == items["clinc/no_memory/2"]["chosen"]
    written = found["updates"]["clinc"]["carried"]
    assert all(counts["updates_applied"] == 0 for counts in written.values())
    assert found["settings"]["memorize"]["surprise_threshold"] == 1e9 and not found["leak"]


def test_the_same_hits_at_every_step_are_no_more_certain_than_at_one() -> None:
    hits = np.arange(40) % 3 > 0
    once = class_incremental._average_accuracy([[hits]])
    again = class_incremental._average_accuracy([[hits], [hits, hits[:0]], [hits, hits[:0], hits[:0]]])
    np.testing.assert_allclose(again, once)
    np.testing.assert_allclose(once, statistics.mean(hits.astype(float)))


def test_the_interval_of_an_average_of_accuracies_holds_no_impossible_one() -> None:
    few = np.arange(12) == 0
    low, high = (class_incremental._average_accuracy([[hits]]) for hits in (few, ~few))
    assert low.low == 0 < low.high < 1 and 0 < high.low < high.high == 1
    assert statistics.mean(few.astype(float)).low < 0
    assert np.isnan(class_incremental._average_accuracy([[few[:1]]]).low)


def test_an_average_of_accuracies_without_a_hit_may_yet_be_above_zero() -> None:
    """As of one step's texts, Wilson's; of several, of as many as their unlike weights are worth."""
    none = np.zeros(150, bool)
    for hits, bound in ((none, 0), (~none, 1)):
        found = class_incremental._average_accuracy([[hits]])
        assert found[:3] == pytest.approx(statistics.proportion(hits)[:3]) and found.value == bound
    found = class_incremental._average_accuracy([[none], [none, none], [none] * 3])
    assert found.value == found.low == 0
    weights = np.repeat([(1 + 1 / 2 + 1 / 3) / 450, (1 / 2 + 1 / 3) / 450, 1 / 3 / 450], 150)
    assert weights.sum() == pytest.approx(1)
    z = 1.959964
    assert found.high == pytest.approx(z**2 / (1 / (weights**2).sum() + z**2), rel=1e-6)
    assert statistics.proportion([False] * 450).high < found.high < statistics.proportion([False] * 150).high
    # One hit is no less than none.
    one = none.copy()
    one[0] = True
    assert class_incremental._average_accuracy([[one]]).high >= statistics.proportion(none).high


def test_the_interval_of_an_average_of_accuracies_holds_the_true_one() -> None:
    rng = np.random.default_rng(0)
    for rate in (0.01, 0.3, 0.98):
        rates = rate / np.sqrt([1, 2, 3])
        held = 0
        for _ in range(200):
            texts = rng.random((3, 40))
            hits = [[texts[group] < rates[step] for group in range(step + 1)] for step in range(3)]
            found = class_incremental._average_accuracy(hits)
            held += found.low <= rates.mean() <= found.high
        assert held >= 0.92 * 200


def test_classes_that_nobody_tells_apart_are_not_surely_never_forgotten() -> None:
    none = np.zeros(20, bool)
    forgot = class_incremental._forgetting([[none], [none, none], [none, none, none]])
    assert forgot is not None and forgot.value == 0 and forgot.n == 40
    one = statistics.paired(none, none)
    assert forgot.low < 0 < forgot.high == pytest.approx(one.high / np.sqrt(2))


def test_forgetting_of_classes_is_from_the_best_step_since_they_were_read() -> None:
    hits = [
        [np.array([True, False])],
        [np.array([True, True]), np.array([False, False])],
        [np.array([False, True]), np.array([False, True]), np.array([True, True])],
    ]
    forgot = class_incremental._forgetting(hits)
    assert forgot is not None and forgot.value == (0.5 - 0.5) / 2


class MadeUp:
    """Knows that `warm` is warm and `cold` cold, and finds `cold` likely anyway."""

    tokenizer = Tokenizer.load()

    def losses(
        self, params: Any, fast: Any, rows: list, tails: list, *, prefix: Any = None, batch_size: int = 1
    ) -> list[np.ndarray]:
        found = []
        for row, tail in zip(rows, tails, strict=True):
            text, label = self.tokenizer.decode(row[:-tail]), self.tokenizer.decode(row[-tail:]).strip()
            loss = {"is warm": 5.0, "is cold": 2.0}[label] - (1.0 if label[3:] in text else 0.0)
            found.append(np.full(tail, loss / tail))
        return found


def test_labels_of_a_made_up_model() -> None:
    form = Format(MadeUp.tokenizer, 20)
    reader: Any = MadeUp()
    raw, pmi = score_labels(reader, None, None, form, ["it is warm", "it is cold"], ["is_warm", "is_cold"])
    np.testing.assert_allclose(raw, [[-4, -2], [-5, -1]])
    np.testing.assert_allclose(pmi, [[1, 0], [0, 1]])
    example = MadeUp.tokenizer.decode(form.example("it is warm", "is_warm"))
    assert example == "it is warm\nIntent: is warm\n"
    assert len(Format(MadeUp.tokenizer, 2).context("it is warm")) == len(form.context("")) + 2


def test_examples_and_tests_are_drawn_by_the_seed(tmp_path: Path) -> None:
    write_clinc(tmp_path)
    run = a_run(tmp_path, None, intents=str(tmp_path), examples=2, tests=3, class_steps=2)
    ((task,), own) = tasks_of(run)
    assert own["classes"] == {"clinc": [2, 2]} and tasks_of(run)[0] == [task]
    assert [len(pairs) for pairs in task.train] == [4, 4] and [len(pairs) for pairs in task.test] == [3, 3]
    read = {text for pairs in task.train for text, _ in pairs}
    assert not read & {text for pairs in [*task.test, *task.validation] for text, _ in pairs}
    assert {label for pairs in task.test for _, label in pairs} == set(task.classes)
    form = Format(run.subject.trained.tokenizer, 20)
    some = in_context_examples(task, form, 1, 90, np.random.default_rng(0))
    text = run.subject.trained.tokenizer.decode(some)
    assert 0 < len(some) <= 90 and text.count("Intent:") >= 2
    assert text.split("\n")[0] in read


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (adaptation, {"learning_rates": []}, "learning_rates=.*: want a list of numbers between 0 and 1"),
        (adaptation, {"learning_rates": [2.0]}, "learning_rates"),
        (adaptation, {"block_tokens": 0}, "block_tokens=0: want a whole number of at least 8"),
        (continual, {"checkpoints": 3}, "checkpoints=3: want a workdir, or a list of paths"),
        (
            continual,
            {"learned_at": [0]},
            "learned_at=.0.: want for each of 2 segments the index of a checkpoint",
        ),
        (continual, {"learned_at": [0, 1]}, "from 0 to 0"),
        (class_incremental, {}, "intents is missing; want the folder of the classification data"),
        (class_incremental, {"intents": "absent"}, "no known data set is there"),
        (class_incremental, {"intents": "FOLDER", "datasets": ["cifar"]}, "no data set 'cifar'"),
        (class_incremental, {"intents": "FOLDER", "examples": "many"}, "examples='many'"),
    ],
)
def test_bad_options(module: Any, options: dict, message: str, tmp_path: Path) -> None:
    write_banking(tmp_path)
    options = {k: str(tmp_path) if v == "FOLDER" else v for k, v in options.items()}
    with pytest.raises(ConfigError, match=message):
        module.evaluate(a_run(tmp_path, **{**SEGMENTS, **options}))
    assert not list(tmp_path.glob("*.jsonl"))


def test_short_texts_are_refused(tmp_path: Path) -> None:
    for module, count in ((adaptation, 4), (continual, 2)):
        with pytest.raises(DataError, match=f"fewer than {count} blocks of 400; give longer texts or fewer"):
            module.evaluate(a_run(tmp_path, **SEGMENTS, block_tokens=400))
    shutil.rmtree(tmp_path)
