"""Any number of devices gives what one gives, and they meet only where they must: for every variant and mode.

`device_runs.py` trains each case for five steps; this file chooses the cases and judges the differences.
"""

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hope_jax.models.blocks import BLOCKS

ROOT = Path(__file__).parents[2]
MODES = ("two_pass", "online", "through_writes")
BATCH = ("memory.scope=batch",)
PERSISTENT = (*BATCH, "memory.lifetime=persistent")
MEAN = ("teach.normalize=batch_mean",)
FSDP = ("train.fsdp=True",)
TITANS = ("titan.level.optimizer=titans",)
TOLERANCE = {"float64": 1e-10, "float32": 1e-5}
UNJUDGED = {"float64": (), "float32": ("params", "opt_state", "grad_norm")}
"""In single precision Adam's quotients and squares are no better than the gradient's small elements."""


def case(
    variant: str,
    mode: str,
    *more: str,
    devices: tuple[int, ...] = (1, 4),
    dtype: str = "float64",
    sums: int | None = 0,
) -> dict[str, Any]:
    """sums: all-reduces in a step beside that of the gradient; None: not counted."""
    head = f"model.block_variant={variant}", f"train.algorithm_mode={mode}", f"train.compute_dtype={dtype}"
    overrides = [*head, *more]
    if variant == "hope_selfmod" and mode == "online":
        overrides.append("train.truncate_tokens=32")
    if dtype == "float32" and set(PERSISTENT) <= set(more):
        # The memory is written by the parameters of several steps: Adam's quotients must not part them.
        overrides.append("optim.eps=0.1")
    name = "/".join([variant, mode, dtype, *(key.split(".")[-1] for key in more)])
    return {"name": name, "overrides": overrides, "devices": devices, "dtype": dtype, "sums": sums}


def run(cases: list[dict[str, Any]], timeout: int = 300) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "tests/cluster/device_runs.py", json.dumps(cases)],
        cwd=ROOT, capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {name: found for line in done.stdout.splitlines() for name, found in json.loads(line).items()}


def check(cases: list[dict[str, Any]], timeout: int = 300) -> dict[str, Any]:
    """Runs the cases; each alike on all devices, which meet as often as they should."""
    found = run(cases, timeout)
    for each in cases:
        result = found[each["name"]]
        assert result["wrote"] > 0, each["name"]
        for devices, differences in result["differences"].items():
            judged = {
                what: apart for what, apart in differences.items() if what not in UNJUDGED[each["dtype"]]
            }
            bad = {what: apart for what, apart in judged.items() if not apart <= TOLERANCE[each["dtype"]]}
            assert "loss" in judged and not bad, (each["name"], devices, bad)
            if each["sums"] is not None:
                met, expected = result["collectives"][devices], meetings(each, *result["split"])
                # The compiler drops the sum of a gradient that is zero whatever the batch.
                shares = expected.pop("reduce-scatter", 0)
                assert 0 <= met.pop("reduce-scatter", 0) <= shares and met == expected, each["name"]
    return found


def meetings(each: dict[str, Any], params: int, fast: int) -> dict[str, int]:
    """How often devices meet in a step. params, fast: number of arrays that are split at rest."""
    if "train.fsdp=True" not in each["overrides"]:
        return {"all-reduce": 1 + each["sums"]}
    # The shares' squares are summed, for the gradient's norm.
    return {"all-reduce": 2 + each["sums"], "all-gather": params + fast, "reduce-scatter": params}


# Sequences of 48 tokens, 2 layers. Periods: fast 8, slow 48, titan 8; a chunk of 16 adds to the slow level's.
GROUPS = {
    "examples": [case("hope_attention", "through_writes")],
    "shared": [
        case("transformer", "online", *FSDP),
        case("hope_attention", "two_pass", "train.accumulate=2", *FSDP),
        case("transformer", "two_pass", "optim.name=muon_hybrid", *FSDP, sums=None),
        case(
            "transformer",
            "two_pass",
            "optim.name=m3",
            "optim.m3.slow_chunk=2",
            "optim.m3.eps=1e-3",
            sums=None,
        ),
        # The supervised tokens of 3 chunks.
        case("hope_hybrid", "online", *MEAN, *FSDP, sums=3),
    ],
    "together": [
        # 2 layers of 6 + 1 + 6 writes.
        case("hope_hybrid", "two_pass", *PERSISTENT, *FSDP, sums=26),
        case("titan", "through_writes", *BATCH, *TITANS, sums=28),
    ],
    "float32": [
        case("titan", "two_pass", dtype="float32"),
        # 2 layers write 4 times, at first nothing: 2 periods and a part of one. The tokens of 3 chunks.
        case("hope_attention", "online", *BATCH, *MEAN, dtype="float32", sums=27),
    ],
    "selfmod": [
        case("hope_selfmod", "online"),
        # 2 layers of 7 writes of levels, and of 6 + 3 of self-modifying Titans, forward and backward.
        case("hope_selfmod", "two_pass", *PERSISTENT, sums=50),
    ],
    "more": [case("transformer_pp", "two_pass", devices=(1, 2, 8))],
}


SLOW = ("shared", "together", "selfmod", "more", "float32")


@pytest.mark.parametrize(
    "group", [pytest.param(name, marks=pytest.mark.nightly if name in SLOW else ()) for name in GROUPS]
)
def test_any_number_of_devices_gives_what_one_gives(group: str) -> None:
    check(GROUPS[group])


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("variant", "mode", "scope", "threshold"),
    [
        ("hope_attention", "online", (), 0.0095),
        ("hope_hybrid", "online", (), 0.0095),
        ("hope_selfmod", "two_pass", (), 0.0115),
        ("titan", "through_writes", BATCH, 0.0115),
    ],
)
def test_gates_open_for_the_same_writes(
    variant: str, mode: str, scope: tuple[str, ...], threshold: float
) -> None:
    """The threshold lies among the surprises, so some writes are gated and some are not."""
    gate = f"memory.surprise_threshold={threshold}"
    gated = case(variant, mode, *scope, gate, sums=None)
    without = case(variant, mode, *scope, devices=(1, 2), sums=None)
    found = check([gated, without])
    assert 0 < found[gated["name"]]["applied"] < found[without["name"]]["applied"]


def grid() -> list[Any]:
    """All variants, modes and scopes, precisions in turn; under `two_pass` the batch's memory persists."""
    cases = []
    everything = itertools.product(BLOCKS, MODES, ((), BATCH), ((), MEAN), TOLERANCE)
    for variant, mode, scope, mean, dtype in everything:
        options = PERSISTENT if scope and mode == "two_pass" else scope
        sums = None if scope or mean else 0
        cases.append(case(variant, mode, *options, *mean, devices=(1, 2, 4, 8), dtype=dtype, sums=sums))
    cases.append(
        case("hope_hybrid", "online", "optim.name=muon_hybrid", *FSDP, devices=(1, 2, 4, 8), sums=None)
    )
    return [pytest.param(each, id=each["name"]) for each in cases]


@pytest.mark.nightly
@pytest.mark.parametrize("each", grid())
def test_every_variant_mode_and_scope(each: dict[str, Any]) -> None:
    check([each], timeout=1200)
