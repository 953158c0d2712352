"""The zero-shot evaluation on made-up files, against lm-eval's own evaluator."""

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lm_eval
import lm_eval.tasks
import numpy as np
import pytest

from hope_jax.core.errors import ConfigError, DataError
from hope_jax.evals.reading.lm_eval_model import HopeLM
from hope_jax.evals.reading.memorize import Rule
from hope_jax.evals.suite import comparison
from hope_jax.evals.suite.run import ARMS, Run
from hope_jax.evals.tasks import zeroshot, zeroshot_tasks
from tests.evals.subjects import as_if_slow, subject
from tests.evals.tasks.zeroshot_files import ITEMS, write_files


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("zeroshot"))


@pytest.fixture
def run(tmp_path: Path, files: Path) -> Run:
    """All tasks, baseline alone."""
    return Run(
        subject(dtype="float64"), tmp_path, batch_size=4, records=True, options={"zeroshot_data": str(files)}
    )


def only(run: Run, *names: str, **changes: Any) -> Run:
    return dataclasses.replace(run, options={**run.options, "zeroshot_tasks": ",".join(names)}, **changes)


def without_model(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Answers by a rule instead of a model, which needs no compilation; the texts of the requests asked."""
    asked: list[str] = []

    def log_prob(text: str) -> float:
        return -1.0 - sum(text.encode()) % 97

    def pairs(self: HopeLM, requests: Any, disable_tqdm: bool = False, *, fast: Any = None) -> list[Any]:
        asked.extend("".join(request.args) for request in requests)
        return [(log_prob("".join(request.args)), len(request.args[1]) % 2 == 0) for request in requests]

    def texts(self: HopeLM, requests: Any, disable_tqdm: bool = False, *, fast: Any = None) -> list[Any]:
        asked.extend(request.args[0] for request in requests)
        return [log_prob(request.args[0]) for request in requests]

    monkeypatch.setattr(HopeLM, "loglikelihood", pairs)
    monkeypatch.setattr(HopeLM, "loglikelihood_rolling", texts)
    return asked


def test_every_task_has_the_figures_of_lm_evals_own_evaluator(
    run: Run, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_model(monkeypatch)
    found = zeroshot.evaluate(run)
    metrics = found["metrics"]
    json.dumps(found, allow_nan=False)
    local = []
    for name, source in zeroshot_tasks.TASKS.items():
        data = {source.split: str(files / source.file)}
        splits = {f"{s}_split": s if s == source.split else None for s in ("training", "validation", "test")}
        kwargs = {"data_files": data, "cache_dir": str(tmp_path / name)}
        local.append(
            {
                "task": source.harness,
                "dataset_path": "json",
                "dataset_name": None,
                "dataset_kwargs": kwargs,
                **splits,
            }
        )
    manager = lm_eval.tasks.TaskManager(
        include_path=[
            str(Path(lm_eval.tasks.__file__).parent / s.folder) for s in zeroshot_tasks.TASKS.values()
        ],
        include_defaults=False,
    )
    seeds = dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed"))
    own = lm_eval.simple_evaluate(
        model=HopeLM(run.subject), tasks=[{"group": "local", "task": local}], num_fewshot=0,
        bootstrap_iters=0, task_manager=manager, **seeds,
    )  # fmt: skip
    compared = set()
    for name, source in zeroshot_tasks.TASKS.items():
        for key, value in own["results"][source.harness].items():
            metric, _, rule = key.partition(",")
            if rule and not metric.endswith("_stderr"):
                assert math.isclose(metrics[f"{name}/{metric}/baseline"]["value"], value, rel_tol=1e-9), key
                compared.add(f"{name}/{metric}")
        assert own["n-samples"][source.harness]["effective"] == len(ITEMS[name])
        assert metrics[next(k for k in metrics if k.startswith(f"{name}/"))]["n"] == len(ITEMS[name])
    both = {"piqa", "hellaswag", "arc_easy", "arc_challenge", "openbookqa"}
    one = {"winogrande", "boolq", "social_iqa", "commonsense_qa", "lambada"}
    perplexities = {f"wikitext/{m}" for m in ("word_perplexity", "byte_perplexity", "bits_per_byte")}
    assert compared == (
        {f"{n}/acc" for n in both | one}
        | {f"{n}/acc_norm" for n in both}
        | perplexities
        | {"lambada/perplexity"}
    )


def test_chance_and_length_stand_beside_the_score(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    without_model(monkeypatch)
    metrics = zeroshot.evaluate(run)["metrics"]
    chances = {
        "piqa": 2,
        "hellaswag": 4,
        "winogrande": 2,
        "arc_easy": 4,
        "boolq": 2,
        "social_iqa": 3,
        "commonsense_qa": 5,
    }
    for name, choices in chances.items():
        assert metrics[f"{name}/acc/baseline"]["chance"] == pytest.approx(1 / choices)
        low, high = metrics[f"{name}/acc/baseline"]["ci95"]
        assert 0 <= low < high <= 1
    # The shortest choice: piqa's right one twice, of the two that are equally short the first.
    shortest = [min((len(item[s]), i) for i, s in enumerate(("sol1", "sol2")))[1] for item in ITEMS["piqa"]]
    right = np.mean([a == item["label"] for a, item in zip(shortest, ITEMS["piqa"], strict=True)])
    assert metrics["piqa/acc/length_only"]["value"] == right
    # -(n + 1) / n is nearest to zero for the longest.
    assert metrics["openbookqa/acc_norm/length_only"]["value"] == 0.0
    assert metrics["boolq/acc/majority_class"]["value"] == pytest.approx(2 / 3)
    assert metrics["boolq/acc/length_only"]["value"] == pytest.approx(1 / 3)
    assert metrics["commonsense_qa/acc/majority_class"]["value"] == pytest.approx(2 / 3)
    assert "piqa/acc/majority_class" not in metrics
    assert metrics["lambada/acc/baseline"]["chance"] is None


def test_memories_hold_the_context_and_with_a_leak_the_answer(run: Run) -> None:
    """What a memorizer would read, as text."""
    model = HopeLM(run.subject)
    with zeroshot_tasks.load(zeroshot_tasks.select((), Path(run.options["zeroshot_data"]))) as tasks:
        read: dict[tuple[str, bool], str] = {}
        for name, task in tasks.items():
            item = zeroshot._items(name, task, 2)[1]
            for leak in (False, True):
                read[name, leak] = run.subject.trained.tokenizer.decode(
                    zeroshot._memorized_text(model, item, leak)
                )
    assert read["piqa", False] == "Question: open a jar\nAnswer:"
    assert read["piqa", True] == "Question: open a jar\nAnswer: Turn the lid."
    assert read["winogrande", False].rstrip() == "Ann gave Eve bread since"
    assert read["winogrande", True] == "Ann gave Eve bread since Eve had none."
    assert read["commonsense_qa", True].endswith("E. boat\nAnswer: E")
    assert read["social_iqa", True] == "Q: Saul won. And then?\nA: he sang"
    assert read["boolq", True] == "The sea is wet.\nQuestion: is the sea dry?\nAnswer: no"
    assert read["hellaswag", True].endswith("The dog runs.") and read["arc_easy", True].endswith(
        "Answer: sea"
    )
    assert read["lambada", False] == "She sang, and then sang a"
    assert read["lambada", True] == "She sang, and then sang a song"
    assert read["wikitext", True].startswith(" = Rain =\n\nThe rain fell,and")


@pytest.mark.nightly
def test_arms_are_paired_by_item_and_a_leak_is_marked(run: Run) -> None:
    """With a model whose memories write."""
    run = only(run, "boolq", limit=2, batch_size=2, arms=ARMS, memorize=Rule(use_correct_answer=True))
    found = zeroshot.evaluate(run)
    metrics, paired = found["metrics"], found["paired"]
    answers = {arm: [row["answers"] for row in found["items"] if row["arm"] == arm] for arm in ARMS}
    assert [len(of_arm) for of_arm in answers.values()] == [2, 2, 2]
    assert answers["baseline"] != answers["memorized"] != answers["control"] != answers["baseline"]
    for other in ("baseline", "control"):
        test = paired[f"boolq/acc/memorized-{other}"]
        assert (test["n"], test["test"], test["leak"]) == (2, "exact McNemar", True)
        accuracy = metrics["boolq/acc/memorized"]["value"] - metrics[f"boolq/acc/{other}"]["value"]
        assert test["delta"] == pytest.approx(accuracy)
        assert "leak" not in metrics[f"boolq/acc/{other}"]
    assert metrics["boolq/acc/memorized"]["leak"]
    assert found["updates"]["boolq"]["memorized"]["cms/fast"]["updates_applied"] > 0
    assert [row["key"] for row in found["items"] if row["arm"] == "control"] == ["boolq/0", "boolq/1"]


def test_figures_show_every_task(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    without_model(monkeypatch)
    found = zeroshot.evaluate(run)
    drawn = zeroshot.evaluate.figures(found)
    assert set(drawn) == {"zeroshot_acc", "zeroshot_acc_norm"}
    for name, tasks in (("acc", 10), ("acc_norm", 5)):
        (axes,) = drawn[f"zeroshot_{name}"].axes
        assert len(axes.get_yticklabels()) == tasks
        shown = {key: metric for key, metric in found["metrics"].items() if key.split("/")[1] == name}
        assert {key.split("/")[2] for key in shown} >= {"baseline", "length_only"}
        chances = {key.split("/")[0] for key, metric in shown.items() if metric["chance"] is not None}
        assert len(axes.lines) == 2 * len(shown) + len(chances), "a value and an interval each, and chance"
    assert not zeroshot.evaluate.figures({"metrics": {}})


def test_checkpoints_are_compared_by_last_words_and_pages(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each item has its own log-likelihood and bits per byte, which `--baseline` pairs."""
    without_model(monkeypatch)
    own = zeroshot.evaluate(only(run, "lambada", "wikitext"))
    other = json.loads(json.dumps(own))
    halves: dict[str, list[float]] = {"lambada/log_prob": [], "wikitext/bits_per_byte": []}
    for row in other["items"]:
        ((answer,), name) = row["answers"], row["key"].split("/")[0]
        if name == "lambada":
            assert row["log_prob"] == answer[0]
            row["log_prob"] /= 2
            halves["lambada/log_prob"].append(answer[0] / 2)
        else:
            page = ITEMS["wikitext"][int(row["key"].split("/")[1])]["page"]
            bits = -answer / len(page.encode()) / math.log(2)
            assert row["bits_per_byte"] == pytest.approx(bits, rel=1e-12)
            row["bits_per_byte"] /= 2
            halves["wikitext/bits_per_byte"].append(bits / 2)
    found = comparison.compare(own, other)
    assert found["only_one"] == 0 and set(found["paired"]) == {
        *(f"{name}/baseline" for name in halves), "lambada/acc/baseline",
    }  # fmt: skip
    for name, deltas in halves.items():
        test = found["paired"][f"{name}/baseline"]
        assert (test["n"], test["test"]) == (2, "paired t")
        assert test["delta"] == pytest.approx(np.mean(deltas), rel=1e-12)


@pytest.mark.nightly
def test_an_items_answers_depend_on_no_other_item(run: Run) -> None:
    """In each arm, with memories of its own; texts memorize themselves where the answer is asked for."""
    names = "boolq", "wikitext", "winogrande"
    run = only(run, *names, arms=ARMS, memorize=Rule(use_correct_answer=True))
    found = zeroshot.evaluate(run)
    assert found["metrics"]["wikitext/bits_per_byte/memorized"]["leak"]
    assert found["paired"]["wikitext/bits_per_byte/memorized-baseline"]["n"] == 2
    alone = zeroshot.evaluate(dataclasses.replace(only(run, *names), limit=1))["items"]
    assert len(alone) == 9
    for row in alone:
        want = next(r for r in found["items"] if (r["key"], r["arm"]) == (row["key"], row["arm"]))
        np.testing.assert_allclose(np.array(row["answers"]), np.array(want["answers"]), rtol=1e-9)


def test_texts_without_context_have_nothing_to_memorize(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    without_model(monkeypatch)
    found = zeroshot.evaluate(only(run, "wikitext", arms=ARMS))
    assert {key.rsplit("/", 1)[1] for key in found["metrics"]} == {"baseline"} and not found["paired"]


def test_a_killed_run_goes_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = without_model(monkeypatch)
    run = only(run, "piqa", "boolq", "wikitext", batch_size=2)
    whole = zeroshot.evaluate(run)
    everything, answer = list(asked), HopeLM.loglikelihood
    asked.clear()
    (run.out / "zeroshot.partial.jsonl").unlink()

    def killed(self: HopeLM, requests: Any, **more: Any) -> Any:
        if requests[0].task_name == "boolq":
            raise KeyboardInterrupt
        return answer(self, requests, **more)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(HopeLM, "loglikelihood", killed)
        zeroshot.evaluate(run)
    before, spent = list(asked), as_if_slow(run.out)
    again = zeroshot.evaluate(run)
    assert whole["seconds"] < spent < again["seconds"]
    assert before and asked[len(before) :] and sorted(asked) == sorted(everything)
    assert {**again, "seconds": 0} == {**whole, "seconds": 0}


@pytest.fixture
def some(tmp_path: Path) -> Iterator[Path]:
    yield write_files(tmp_path / "some", "piqa", "lambada")


def test_tasks_without_a_file_are_skipped_or_refused(some: Path) -> None:
    chosen = zeroshot_tasks.select((), some)
    assert chosen.tasks == ("piqa", "lambada") and len(chosen.skipped) == 9
    place = f"put its data, lines of JSON with question, passage, label, into {some}/boolq_validation.jsonl"
    assert f"boolq is skipped: {place}" in chosen.skipped
    assert zeroshot_tasks.select(("piqa",), some).skipped == ()
    for wanted, folder, message in (
        (("piqa", "boolq"), some, "boolq is skipped: put its data"),
        (("pica",), some, "zeroshot_tasks=pica: no such task; want some of piqa, hellaswag"),
        ((), some / "absent", "absent: no such folder"),
        ((), some.parent, "piqa is skipped"),
    ):
        with pytest.raises(ConfigError, match=message):
            zeroshot_tasks.select(wanted, folder)
    assert zeroshot_tasks.select((), None).tasks == tuple(zeroshot_tasks.TASKS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"goal": "a", "sol1": "b", "label": 0}\n', "line 1 lacks sol2; want goal, sol1, sol2, label"),
        ("[1]\n", "line 1 lacks goal"),
        ('{"goal": "a", "sol1": "b", "sol2": "c", "label": 0}\n{', "line 2 is no JSON"),
        ("", "the file is empty"),
        (
            '{"goal": "a", "sol1": "b", "sol2": "c", "label": NaN}\n',
            r"line 1 is no JSON \(NaN is no JSON value",
        ),
    ],
)
def test_files_of_another_schema_are_refused(some: Path, text: str, message: str) -> None:
    (some / "piqa_validation.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        zeroshot_tasks.select((), some)


def test_marks_and_empty_lines_change_no_figure(
    some: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_model(monkeypatch)
    asked = dataclasses.replace(
        only(run, "piqa"), options={"zeroshot_data": str(some), "zeroshot_tasks": "piqa"}
    )
    before = zeroshot.evaluate(asked)
    path = some / "piqa_validation.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n\r\n"))
    after = zeroshot.evaluate(dataclasses.replace(asked, out=some))
    assert after["metrics"] == before["metrics"] and len(after["items"]) == len(before["items"])
    path.write_text(path.read_text(encoding="utf-8-sig"), encoding="utf-16")
    with pytest.raises(DataError, match="piqa_validation.jsonl: is UTF-16, as its byte order mark says"):
        zeroshot_tasks.select((), some)


def test_words_about_the_data_are_a_setting(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    without_model(monkeypatch)
    plain = only(run, "piqa")
    noted = dataclasses.replace(plain, options={**plain.options, "zeroshot_note": "made-up items, not PIQA"})
    assert "note" not in zeroshot.evaluate(plain)["settings"]
    assert zeroshot.evaluate(noted)["settings"]["note"] == "made-up items, not PIQA"


def test_wrong_options_and_missing_packages_are_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in (1, "many"):
        wrong = dataclasses.replace(run, options={**run.options, "zeroshot_max_length": limit})
        with pytest.raises(ConfigError, match=f"zeroshot_max_length={limit}: want at least 2"):
            zeroshot.evaluate(wrong)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'hope_jax\[eval\]'"):
        zeroshot.evaluate(run)


def test_what_cannot_be_downloaded_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(self: Any, tasks: Any) -> Any:
        raise ConnectionError("Couldn't reach the hub\nmore")

    monkeypatch.setattr(lm_eval.tasks.TaskManager, "load", unreachable)
    with (
        pytest.raises(
            DataError,
            match="piqa: .*cannot be loaded.*reach the hub.; give piqa_validation.jsonl in a folder",
        ),
        zeroshot_tasks.load(zeroshot_tasks.select(("piqa",), None)),
    ):
        pass


def test_requests_that_are_cut_are_counted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    without_model(monkeypatch)
    short = only(run, "piqa", "lambada", "wikitext")
    assert set(zeroshot.evaluate(short)["truncated"].values()) == {0}
    cut = zeroshot.evaluate(dataclasses.replace(short, options={**short.options, "zeroshot_max_length": 20}))
    assert (
        cut["truncated"]["wikitext"] == 2
        and 0 < cut["truncated"]["piqa"] <= 6
        and cut["truncated"]["lambada"] == 0
    )
