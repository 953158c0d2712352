"""The check of a device: what counts as a difference, one part of each kind at toy size, and the report."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax import device_check as command
from hope_jax.perf import device_check, device_report
from hope_jax.perf.kernel_checks import Check, checks
from hope_jax.perf.steps import StepRun
from hope_jax.planning.compile import inspect
from hope_jax.planning.devices import ACCELERATORS, topology_here
from tests.perf import tiny


def test_a_difference_is_told_in_shares_of_the_largest_number() -> None:
    wanted = {"a": np.array([1.0, -4.0]), "n": np.array([3, 4])}
    near, nan = ({"a": np.array([first, -4.0]), "n": np.array([3, 5])} for first in (1.2, np.nan))
    assert device_check.error(near, wanted) == pytest.approx(0.05)
    assert device_check.error(nan, wanted) == float("inf")
    assert device_check.error(wanted, wanted) == 0


def test_a_kernel_that_differs_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    check = Check("squares", lambda x: x * x, lambda: (jnp.ones(3),), low=(0,))
    assert device_check.kernel(check, small=True)["ok"]
    monkeypatch.setattr(device_check, "error", lambda found, wanted: 1e-2)
    found = device_check.kernel(check, small=False)
    assert [(row["dtype"], row["ok"]) for row in found["rows"]] == [("float32", False), ("bfloat16", True)]
    assert not found["ok"]


@pytest.mark.nightly
@pytest.mark.parametrize("check", checks(32, 64), ids=lambda check: check.name)
def test_a_kernel_gives_the_same_on_the_same_device(check: Check) -> None:
    rows = device_check.kernel(check, small=True)["rows"]
    assert [row["error"] for row in rows] == [0.0, 0.0]


def test_parts_are_words_and_the_few_are_among_them() -> None:
    """The script splits their list at spaces."""
    everything, few = device_check.parts(small=False), device_check.parts(small=True)
    assert set(few) == device_check.FEW and all(len(name.split()) == 1 for name in everything)
    assert {"step/titan/two_pass", "pilot/online-2048", "size/hope_1300m", "torch"} <= set(everything)


def test_a_profile_has_the_parts_of_the_step() -> None:
    run = StepRun(tiny.config("transformer", model__num_layers=1, train__algorithm_mode="two_pass"))
    jax.block_until_ready(run())
    program = inspect(run.executable, topology_here(jax.devices()[:1]), 1.0)
    found = device_check._profile(run, program)
    assert {"attention", "MLP", "outer optimizer"} <= set(found["part"]) and "products" in found["cause"]
    assert sum(found["part"].values()) == pytest.approx(sum(found["cause"].values()))
    assert device_check._attention(program)["products"] > 0 and not device_check._calls(program).get("fmha")


def test_a_known_device_has_the_plans_peaks() -> None:
    class Device:
        device_kind, platform = "NVIDIA H200", "gpu"

    known = topology_here([Device()])  # type: ignore[list-item]
    assert known.accelerator is ACCELERATORS["h200"] and known.devices == 1
    assert topology_here(jax.devices("cpu")[:1]).accelerator.peaks is None


def test_parts_that_have_a_result_are_left_and_failures_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs: list[str] = []

    def part(name: str, result: dict) -> object:
        def run() -> dict:
            runs.append(name)
            if result:
                return result
            raise ValueError("no such kernel")

        return run

    row = {"name": "sum", "dtype": "float32", "error": 0.5, "tolerance": 0.1, "ok": False}
    speed = {"tokens_per_second": 1234.0, "attention": {"products": 2.0}, "plan": None}
    results = {"versions": {"devices": "1 x toy"}, "kernels": {"rows": [row], "ok": False}, "pilot/x": speed}
    parts = {name: part(name, result) for name, result in {**results, "broken": {}, "later": speed}.items()}
    monkeypatch.setattr(device_check, "parts", lambda small: parts)
    command.flags.FLAGS(["device_check", f"--out={tmp_path}"])
    asked = [name for name in parts if name != "later"]
    assert command.main(asked) == 1 and command.main(asked) == 1
    assert runs == asked, "the second time nothing is left to do"
    found = json.loads((tmp_path / "device_check.json").read_text())
    assert found["broken"]["error"] == "ValueError: no such kernel"
    assert device_report.failures(found) == ["kernels", "broken"]
    page = (tmp_path / "report.md").read_text()
    assert "| pilot/x | 1,234 |" in page and "| kernels | float32 | 0.5 | 0.1 | NO |" in page
    assert "Not run: later" in page and "broken: ValueError" in page
    assert "kernels" in capsys.readouterr().err
