"""The benchmark command: what is compared, what a table row and the JSON say, and wrong names."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from hope_jax import bench
from hope_jax.core.errors import ConfigError
from hope_jax.perf import timing
from hope_jax.perf.timing import Case, Comparison, compiled, measure

ROOT = Path(__file__).parents[2]


def two_products() -> tuple[Case, ...]:
    """The second does an eighth of the work of the first."""
    large, small = jnp.ones((256, 256)), jnp.ones((128, 128))
    return (
        compiled("large", lambda a: a @ a @ a, large, flops=4.0 * 256**3, tokens=256),
        compiled("small", lambda a: a @ a @ a, small, flops=4.0 * 128**3, tokens=128),
    )


@pytest.fixture(autouse=True)
def short_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SHORTEST_SAMPLE", 0.002)
    monkeypatch.setattr(timing, "PEAK_SIZE", 128)


def test_figures_belong_together() -> None:
    large, small = measure(Comparison("products/two", two_products), rounds=5)
    assert large["ratio"] == large["tokens_ratio"] == 1
    assert small["ratio"] == pytest.approx(large["seconds"] / small["seconds"])
    assert small["share"] == pytest.approx(4 * 128**3 / small["seconds"] / (small["peak_gflops"] * 1e9))
    assert small["tokens_per_second"] == pytest.approx(128 / small["seconds"])
    assert small["tokens_ratio"] == pytest.approx(small["ratio"] / 2)
    assert small["rounds"] == 5 and small["spread"] >= 0


def test_waits_are_a_share_of_the_samples() -> None:
    waits: list[float] = []

    def wait() -> None:
        started = time.perf_counter()
        time.sleep(0.001)
        waits.append(time.perf_counter() - started)

    def cases() -> tuple[Case, ...]:
        return *two_products(), Case("waiting", wait, waited=lambda: sum(waits))

    *others, waiting = measure(Comparison("products/waiting", cases), rounds=2)
    assert waiting["wait_share"] is not None and 0.2 < waiting["wait_share"] <= 1
    assert waiting["share"] is None and waiting["tokens_per_second_at_peak"] is None
    assert [timing["wait_share"] for timing in others] == [None, None]


def test_table_and_json(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Module:
        @staticmethod
        def comparisons() -> Iterator[Comparison]:
            yield Comparison("products/two", two_products)
            yield Comparison("products/other", two_products)

    monkeypatch.setattr(bench, "MODULES", (Module,))
    # Not by flags: another command that this process has imported may have a --json of its own.
    monkeypatch.setattr(bench, "_JSON", SimpleNamespace(value=str(tmp_path / "found.json")))
    bench.FLAGS(["bench", "--rounds=2"])
    bench.main(["products/two"])
    found = json.loads((tmp_path / "found.json").read_text())
    assert [t["case"] for t in found["timings"]] == ["large", "small"]
    assert {"seconds", "spread", "ratio", "share", "peak_gflops"} <= set(found["timings"][0])
    assert found["machine"]["cores"]
    printed = capsys.readouterr().out
    assert "products/two (peak " in printed and "products/other" not in printed
    for name in ("nothing", "products/nothing"):
        with pytest.raises(ConfigError, match="products"):
            list(bench.comparisons([name]))


def test_every_operation_lists_its_comparisons() -> None:
    there = [one.name for one in bench.comparisons([])]
    assert len(set(there)) == len(there)
    operations = {name.partition("/")[0] for name in there}
    assert operations >= {
        "attention",
        "cms_write",
        "compile",
        "gated_deltanet",
        "loader",
        "self_mod",
        "step",
        "stream",
    }
    for name in operations:
        assert [one.name for one in bench.comparisons([name])] == [
            n for n in there if n.startswith(f"{name}/")
        ]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hope_jax.bench", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("arguments", [["self_modd"], ["--config=configs/pilot_smoke.py", "self_mod"]])
def test_command_refuses_an_unknown_name_and_one_beside_a_configuration(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2 and arguments[-1] in done.stderr and "Traceback" not in done.stderr


@pytest.mark.nightly
def test_the_step_of_a_configuration() -> None:
    small = {"model.dim": 16, "model.heads": 2, "data.seq_len": 32, "model.num_layers": 1}
    overrides = [f"--config.{key}={value}" for key, value in small.items()]
    done = run("--config=configs/pilot_smoke.py", *overrides, "--rounds=1")
    assert done.returncode == 0, done.stderr
    assert "step/pilot_smoke (peak" in done.stdout and "hope_hybrid" in done.stdout
