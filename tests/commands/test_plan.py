"""python -m hope_jax.plan: the table and JSON of a small configuration on CPU devices, and its errors."""

import contextlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from hope_jax.core.errors import ConfigError
from hope_jax.planning import devices, table

ROOT = Path(__file__).parents[2]
TINY = {
    "model.dim": 16,
    "model.heads": 2,
    "model.num_layers": 2,
    "model.vocab_size": 64,
    "data.seq_len": 64,
    "data.batch_size": 4,
    "train.online_chunk_size": 16,
    "model.block_variant": "hope_attention",
    "cms.levels": "{'cms': {'update_period': 16, 'lr': 0.001, 'optimizer': 'momentum'}}",
    "optim.name": "adamw",
}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hope_jax.plan", f"--config={ROOT}/configs/pilot_smoke.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict]:
    target = tmp_path_factory.mktemp("plan") / "plan.json"
    small = [f"--config.{key}={value}" for key, value in TINY.items()]
    done = run("--topology=cpu:2", f"--json={target}", "--streaming", "--contexts=64,256", "--top=3", *small)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(target.read_text())


def test_the_table_says_what_it_is(planned: tuple[str, dict]) -> None:
    table, _ = planned
    for word in (
        "memory, peak",
        "FLOPs of matrix products",
        "bytes accessed",
        "by part of the model",
        "CMS write",
        "kernel launches",
        "all-reduce",
        "never forecasts",
    ):
        assert word in table


def test_json_has_the_step_of_the_two_devices(planned: tuple[str, dict]) -> None:
    _, plan = planned
    train = plan["train"]
    memory = train["memory_bytes"]
    assert (
        memory["peak"]
        == sum(memory[k] for k in ("arguments", "outputs", "temporaries", "code")) - memory["aliased"]
    )
    # The donated state is updated in place.
    assert 0.9 * memory["outputs"] < memory["aliased"] <= memory["outputs"]
    assert train["tokens"] == 4 * 64
    # Once a step, not once a chunk or layer.
    assert train["collectives"]["all-reduce"]["payload"] < 2 * memory["arguments"]
    assert train["useful_flops"] > 0
    assert sum(train["matmul_flops"].values()) > train["compiler_counts_loops_once"]["flops"] / 4
    assert train["loops_of_unknown_length"] == 0
    assert train["bound"] is None and plan["largest_batch"] is None


def test_bytes_and_launches_add_up_over_causes_and_parts(planned: tuple[str, dict]) -> None:
    train = planned[1]["train"]
    for key in ("by_cause", "by_part"):
        sums = train[key].values()
        assert sum(each["bytes"] for each in sums) == pytest.approx(train["bytes_accessed"])
        assert sum(each["launches"] for each in sums) == pytest.approx(train["launches"])
    assert {"products", "other"} <= set(train["by_cause"]) and "CMS write" in train["by_part"]
    moved = [kernel["bytes"] * kernel["runs"] for kernel in train["largest"]]
    assert len(moved) == 3 and moved == sorted(moved, reverse=True)


def test_a_plan_of_before_stands_beside_it(planned: tuple[str, dict]) -> None:
    plan = planned[1]
    train = {**plan["train"], "bytes_accessed": 2 * plan["train"]["bytes_accessed"]}
    del train["launches"]
    rows = {line[:28].strip(): line.split() for line in table.comparison(plan, {**plan, "train": train})}
    assert rows["bytes accessed"][-1] == "0.50" and rows["memory, peak"][-1] == "1.00"
    assert rows["kernel launches"][2] == rows["kernel launches"][-1] == "-"


def test_the_cost_of_a_stream_grows_with_its_cache(planned: tuple[str, dict]) -> None:
    short, long = planned[1]["streaming"]
    assert (short["context"], long["context"]) == (64, 256)
    assert long["bytes_accessed"] > short["bytes_accessed"]
    assert long["memory_bytes"]["arguments"] > short["memory_bytes"]["arguments"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--topology is missing"),
        (["--topology=cpu:2", "--config.data.batch_size=9"], "not divisible by the 2 devices"),
        (["--topology=cpu:2", "--contexts=2k"], "want whole numbers"),
        (["--topology=cpu:2", "--contexts=64,-5"], "want whole numbers, at least 1, got 64,-5"),
        (["--topology=cpu:2", "--compare=nowhere.json"], "nowhere.json"),
        (["--topology=cpu:2", "--notrain"], "nothing is left to compile"),
        (
            ["--topology=cpu:2", "--json=nowhere/plan.json"],
            "=nowhere/plan.json: want a file in a folder",
        ),
    ],
)
def test_errors_are_one_paragraph_and_code_2(arguments: list[str], words: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert words in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(("name", "package"), [("v5e:2x2", r"jax\[tpu\]=="), ("h100:8", r"jax\[cuda12\]==")])
def test_a_missing_plugin_is_named_with_its_remedy(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(*_: object, **__: object) -> None:
        raise {"v5e:2x2": RuntimeError, "h100:8": NotImplementedError}[name]("not here")

    monkeypatch.setattr(devices.topologies, "get_topology_desc", absent)
    with pytest.raises(ConfigError, match=f"not installed.*pip install.*{package}"):
        devices.find_devices(devices.parse_topology(name))


@pytest.mark.parametrize(("name", "module"), [("v5e:2x2", "libtpu"), ("h100:8", "jax_plugins.xla_cuda12")])
def test_without_the_plugin_the_command_ends_with_code_2(name: str, module: str) -> None:
    with contextlib.suppress(ModuleNotFoundError):
        if importlib.util.find_spec(module):
            pytest.skip(f"{module} is installed")
    done = run(f"--topology={name}", "--config.data.batch_size=9")
    assert done.returncode == 2
    assert "not installed" in done.stderr and "pip install" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "variant", ["hope_attention", pytest.param("hope_hybrid", marks=pytest.mark.nightly)]
)
def test_a_window_makes_the_cost_of_a_stream_flat(variant: str, tmp_path: Path) -> None:
    """The command of docs/plan.md: all but the documents' numbers, 4 bytes a token, is as large."""
    small = [f"--config.{key}={value}" for key, value in {**TINY, "model.block_variant": variant}.items()]
    window, target = "--config.model.sliding_window=32", tmp_path / "plan.json"
    contexts = ["--notrain", "--streaming", "--contexts=64,1024"]
    done = run("--topology=cpu:1", f"--json={target}", *contexts, window, *small)
    assert done.returncode == 0, done.stderr
    short, long = json.loads(target.read_text())["streaming"]
    assert long["matmul_flops"] == short["matmul_flops"]
    numbers = 4 * (1024 - 64)
    for part in ("arguments", "outputs"):
        assert long["memory_bytes"][part] - short["memory_bytes"][part] == numbers
    assert long["memory_bytes"]["aliased"] > 0.9 * long["memory_bytes"]["outputs"] - 4 * 16 * 64 * 4


def test_topologies_are_counted() -> None:
    counts = {name: devices.parse_topology(name).devices for name in devices.EXAMPLES.split(", ")}
    assert counts == {"rtx6000ada:2": 2, "h100:8": 8, "h200:1": 1, "v5e:2x2": 4, "v5e:4x4": 16, "cpu:2": 2}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gtx:2", "'gtx'; known accelerators: rtx6000ada, h100, h200, v5e, cpu"),
        ("v5e:4", "want v5e:AxB"),
        ("cpu:0", "want cpu:COUNT"),
        ("h100", "want h100:COUNT"),
    ],
)
def test_unknown_topologies_are_refused_with_the_known_ones(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        devices.parse_topology(name)
