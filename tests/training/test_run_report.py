"""The report is whole without the run, and honest about what it lacks."""

import json
import re
from dataclasses import replace

import pytest

from hope_jax.config.experiment import EvalConfig
from hope_jax.core.errors import DataError
from hope_jax.core.files import METRICS_FILE, SUMMARY_FILE, dump_row
from hope_jax.training.run_report import render, write_report
from tests.training.toy import toy_config, toy_program, toy_train, without_memories


def row(step, **values):
    base = {"step": step, "loss": 3.0, "grad_norm": 1.0, "lr": 1e-3, "teach_signal_norm": 0.1}
    return {**base, "tokens_per_sec": 100.0, "writes": {}, **values}


SUMMARY = {
    "name": "a<b>", "steps": 2, "eval_loss": 1.5, "unigram_entropy": 2.0, "perplexity": 4.48,
    "interrupted": False,
    "samples": [{"prompt": "<script>x</script>", "text": "1 < 2 & 3"}], "config": {"model": {"dim": 8}},
}  # fmt: skip


def test_training_leaves_a_report_that_two_files_regenerate(tmp_path, needs_report):
    toy_train(tmp_path, toy_config(steps=8, eval=EvalConfig(every=4, generate_tokens=5)))
    page, picture = (tmp_path / "report.html").read_text(), (tmp_path / "loss.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert "Generated lines" in page and "cms_slow" in page and "toy &lt;note&gt;" in page
    other = tmp_path / "copy"
    other.mkdir()
    for name in (METRICS_FILE, SUMMARY_FILE):
        (other / name).write_bytes((tmp_path / name).read_bytes())
    write_report(other)
    assert (other / "report.html").read_text() == page


def test_page_refers_to_nothing_outside_and_escapes_text():
    page = render(SUMMARY, [row(1), row(2, eval_loss=1.5, unigram_entropy=2.0)])
    assert all(source.startswith("data:") for source in re.findall(r'(?:src|href)="([^"]*)"', page))
    assert "http" not in re.sub(r'src="[^"]*"', "", page)
    assert "<script>" not in page and "1 &lt; 2 &amp; 3" in page and "a&lt;b&gt;" in page
    assert "0.750" in page  # eval loss over unigram entropy


def test_variant_without_memories_and_single_row_say_so():
    page = render({**SUMMARY, "samples": []}, [row(1)])
    assert "no memories" in page and "Generated lines" not in page


def test_run_without_any_row_or_number_still_renders():
    page = render({"name": "x", "steps": 0, "interrupted": True}, [])
    assert "Interrupted after step 0" in page


def test_levels_with_different_statistics_and_gaps_are_drawn():
    writes = {
        "fast": {"grad_norm": [1.0, None]},
        "slow": {"updates_applied": [2.0, 3.0], "other": [4.0, 6.0]},
    }
    page = render(SUMMARY, [row(1, writes=writes), row(2), row(3, writes={"slow": writes["slow"]})])
    assert "Write statistics of fast, slow" in page
    assert "<td>2.5</td>" in page and "<th>other</th>" in page


def test_folder_without_a_summary_is_an_error(tmp_path):
    (tmp_path / METRICS_FILE).write_text(dump_row(row(1)))
    with pytest.raises(DataError, match=SUMMARY_FILE):
        write_report(tmp_path)


def test_program_without_memories_trains(tmp_path, needs_report):
    config = toy_config(steps=2)
    toy_train(
        tmp_path,
        replace(config, eval=EvalConfig(every=0, generate_tokens=0)),
        without_memories(toy_program()),
    )
    assert json.loads((tmp_path / SUMMARY_FILE).read_text())["samples"] == []
    assert "no memories" in (tmp_path / "report.html").read_text()
