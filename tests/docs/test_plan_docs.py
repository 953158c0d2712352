"""docs/make_plan.py: its rows are runnable commands, and its tables show the plans that are there."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from hope_jax import cli
from hope_jax.config.check import validate
from hope_jax.planning.devices import parse_topology

ROOT = Path(__file__).parents[2]
SUMS = {"bytes": 2.0 * 2**30, "launches": 3.0}
BOUNDS = {"": 9000, "_with_launches": 8000, "_realistic": 7000}
TRAIN = {
    "memory_bytes": {"peak": 8 * 2**30}, "capacity_bytes": 45 * 2**30, "fits": True,
    "matmul_flops": {"f32": 1e13},
    "useful_share": 0.5, "bytes_accessed": 4 * 2**30, "launches": 1234.0,
    "collectives": {"all-reduce": {"sent": 2**29}},
    "by_cause": {"copies": SUMS}, "by_part": {"attention": SUMS},
    "bound": {f"tokens_per_second{key}": value for key, value in BOUNDS.items()},
}  # fmt: skip


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs/make_plan.py"))


def test_every_row_is_a_configuration_that_its_devices_can_run(script: dict[str, Any]) -> None:
    rows = list(script["rows"]())
    assert len({script["file_of"](row, Path()) for row in rows}) == len(rows)
    for row in rows:
        overrides = [flag.removeprefix("--config.") for flag in row.flags if flag.startswith("--config.")]
        config = cli.read_config(ROOT / "configs" / f"{row.config}.py", overrides)
        devices = None if "--notrain" in row.flags else parse_topology(row.topology).devices
        validate(config, device_count=devices)


def test_tables_show_what_was_compiled_and_name_the_rest(script: dict[str, Any], tmp_path: Path) -> None:
    first, second, *rest = script["rows"]()
    plan = {
        "topology": {"devices": 1}, "batch_size": 6, "train": TRAIN, "streaming": [],
        "made": {"date": "2026-12-01", "commit": "abc"},
    }  # fmt: skip
    refused = {**plan, "train": {"tokens": 5, "refused": None, "fits": False}}
    for row, each in ((first, plan), (second, refused)):
        script["file_of"](row, tmp_path).write_text(json.dumps(each))
    shown = script["tables"](tmp_path)
    figures = "8.0 of 45.0 | 10.0 | 50% | 4 | 0.50 | 1,234 | 9,000 | 8,000 | 7,000"
    assert f"| {first.mode} | rtx6000ada:1 | 6 | {figures} |" in shown
    assert "| copies | 2 |" in shown and "| attention | 2 |" in shown
    assert f"| {second.mode} | rtx6000ada:1 | 6 | refused" in shown
    absent = shown.partition("Not compiled: ")[2]
    assert all(row.name in absent for row in rest) and first.name not in absent


def test_only_what_stands_between_the_markers_is_new(script: dict[str, Any]) -> None:
    page = (ROOT / "docs/plan.md").read_text(encoding="utf-8")
    once = script["renewed"](page, "new\n")
    assert "new" in once and script["renewed"](once, "new\n") == once
    assert once.startswith(page.partition(script["BEGIN"])[0])
    assert once.endswith(page.partition(script["END"])[2])
