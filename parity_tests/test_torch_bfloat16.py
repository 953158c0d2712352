"""Production in bfloat16 against the torch reference in float64, with the reference in bfloat16 as yardstick.

Parameters and states are float32, activations and products bfloat16. The error is |a - b| / |b| in the
Frobenius norm over everything of a kind: logits of whole sequences, what streams have written, their outer
gradient. Production may err by twice what torch errs. Measured on one CPU (production, torch):

    hope_attention            logits 1.3e-2, 1.2e-2   written 5.3e-2, 7.5e-2   gradient 9.2e-2, 1.2e-1
    hope_attention_published  logits 3.7e-3, 4.4e-3   written 7.2e-3, 7.9e-3   gradient 3.8e-3, 4.5e-3

    python -m pytest -q -s -m "nightly or not nightly" parity_tests/test_torch_bfloat16.py
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from hope_jax.learning import modes
from parity_tests import torch_bridge as bridge
from parity_tests.torch_cases import CHUNK, TOKENS, modern, published
from parity_tests.torch_reference import model as reference
from parity_tests.torch_reference import stream
from parity_tests.torch_reference.settings import Arch, Level, Rules
from parity_tests.torch_reference.stream import Example

NIGHTLY = pytest.mark.nightly
ROWS = 8
RULES = Rules(CHUNK, teach_scale=0.1)
LEVELS = (Level("fast", 4, 0.2), Level("mid", 8, 0.1), Level("slow", 16, 0.1, beta=0.5))
"""Linear optimizers: second moments and tanh turn a rounding into a sign at the first steps."""

ARCHS = {
    "hope_attention": modern("hope_attention", LEVELS),
    "hope_attention_published": published("hope_attention", LEVELS[:1]),
}

WITHIN = 2.0
"""Production's error over torch's."""

USABLE = 0.15
"""A larger error of torch's own would make a poor yardstick."""


def torch_results(arch: Arch, theta: Any, rows: list[Example]) -> dict[str, Any]:
    """Logits, what memories have written, and the outer gradient of the reference."""
    empty = reference.fresh_fast(theta, arch), reference.fresh_carry(theta)
    with torch.no_grad():
        reads = [reference.read(theta, arch, *empty, row.tokens, row.segments).logits for row in rows]
    streams = [stream.outer_gradient(theta, arch, RULES, row) for row in rows]
    written = [
        changes(theta, layer, bridge.reference_fast(arch, state))
        for _, out in streams
        for layer, state in enumerate(out.fast)
    ]
    gradient = bridge.summed(lambda pair: bridge.to_numpy(pair[0]), streams)
    return {"logits": bridge.to_numpy(reads), "written": written, "gradient": gradient}


def changes(theta: Any, layer: int, fast: dict[str, Any]) -> dict[str, Any]:
    """What one layer's memories have written; of those held as whole weights, their distance from theta."""
    found = {name: memory["delta"] for name, memory in fast.items() if name != "self_mod"}
    if "self_mod" in fast:
        start = theta["blocks"]["self_mod"]
        found["self_mod"] = {
            name: {
                w: np.asarray(now, np.float64) - np.asarray(start[name][w][layer])
                for w, now in memory.items()
            }
            for name, memory in fast["self_mod"]["weights"].items()
        }
    return found


def production_results(arch: Arch, params: Any, rows: list[Example]) -> dict[str, Any]:
    """The same of production."""
    model, batch = bridge.hope_model(arch, RULES), bridge.batch_of(rows)

    @partial(jax.jit, compiler_options=bridge.QUICK)
    def run(params: Any) -> Any:
        fast = model.init_fast_state(params, len(rows))
        out = model.read(params, fast, None, batch.tokens, batch.segment_ids, training=True)
        logits = model.logits(params, out.hidden)
        rule = bridge.online_rule(RULES)
        return logits, *modes.online(model, rule, params, fast, batch, jnp.ones((), jnp.float32))

    logits, gradient, result = run(params)
    assert logits.dtype == jnp.float32
    written = [
        changes(params, layer, bridge.production_fast(arch, result.fast, layer, b))
        for b in range(len(rows))
        for layer in range(bridge.LAYERS)
    ]
    return {"logits": list(logits), "written": written, "gradient": gradient}


def distance(got: Any, exact: Any) -> float:
    """|a - b| / |b| over all leaves together."""
    pairs = list(zip(jax.tree.leaves(got), jax.tree.leaves(exact), strict=True))
    apart = sum(float(np.sum(np.square(np.asarray(a, np.float64) - b))) for a, b in pairs)
    return float(np.sqrt(apart / sum(float(np.sum(np.square(b))) for _, b in pairs)))


DAILY = ("hope_attention_published",)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in DAILY else NIGHTLY) for n in ARCHS])
def test_production_errs_no_more_than_twice_as_much_as_torch(name: str) -> None:
    arch, rows = ARCHS[name], bridge.examples(ROWS, TOKENS)
    low = replace(arch, dtype=torch.bfloat16)
    params = bridge.random_params(bridge.hope_model(low, RULES))
    theta = bridge.to_torch(params)
    exact = torch_results(arch, jax.tree.map(torch.Tensor.double, theta), rows)
    yardstick, ours = torch_results(low, theta, rows), production_results(low, params, rows)
    kinds = [kind for kind in exact if jax.tree.leaves(exact[kind])]
    errors = {kind: [distance(results[kind], exact[kind]) for results in (ours, yardstick)] for kind in kinds}
    for kind, (mine, torchs) in errors.items():
        print(f"{name:26} {kind:9} production {mine:.1e} torch {torchs:.1e}")
    for kind, (mine, torchs) in errors.items():
        assert torchs < USABLE, f"{kind}: torch itself is off by {torchs:.1e}"
        assert mine <= WITHIN * torchs, f"{kind}: {mine:.1e} is more than twice torch's {torchs:.1e}"
