"""Newton-Schulz of all matrices: short types on accelerators alone, and no device repeats another's work."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hope_jax.kernels.newton_schulz import QUINTIC, iterate, iterate_all

from hope_jax.optim.m3 import M3Rule, scale_by_m3
from hope_jax.optim.outer import OptimRule, make_optimizer

ROOT = Path(__file__).parents[2]
SHAPES = {"a": (3, 4, 6), "b": (2, 6, 4), "c": (4, 6), "d": (3, 5, 5)}


def drawn(dtype: str) -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    made = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    return {name: jnp.asarray(x / np.linalg.norm(x), dtype) for name, x in made.items()}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_on_one_cpu_it_is_iterate_to_the_last_bit(dtype: str) -> None:
    got = jax.jit(lambda tree: iterate_all(tree, QUINTIC, 5))(drawn(dtype))
    for name, x in drawn(dtype).items():
        np.testing.assert_array_equal(got[name], jax.jit(lambda x: iterate(x, QUINTIC, 5))(x))
        assert got[name].dtype == dtype


def products(function: object, tree: object, platform: str) -> set[str]:
    """Types of the matrix products in what is compiled for a platform, which need not be here."""
    text = jax.jit(function).trace(tree).lower(lowering_platforms=(platform,)).as_text()
    lines = [line for line in text.splitlines() if "dot_general" in line]
    return {found for line in lines for found in re.findall(r"x(f32|f64|bf16)>", line)}


@pytest.mark.parametrize("name", ["muon", "muon_hybrid", "m3"])
def test_accelerators_iterate_float32_in_bfloat16(name: str) -> None:
    params = {"blocks": {"attn": {"w_q": drawn("float32")["a"]}}}
    optimizer = make_optimizer(OptimRule(name=name))
    state = optimizer.init(params)

    def update(grads: object) -> object:
        return optimizer.update(grads, state, params)[0]

    found = {platform: products(update, params, platform) for platform in ("cpu", "cuda", "tpu")}
    assert found == {"cpu": {"f32"}, "cuda": {"bf16"}, "tpu": {"bf16"}}


def test_double_precision_stays() -> None:
    def update(tree: object) -> object:
        rule = scale_by_m3(M3Rule())
        return rule.update(tree, rule.init(tree))[0]

    assert products(update, drawn("float64"), "cuda") == {"f64"}


SCRIPT = """
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_enable_x64", True)
from hope_jax.cluster.sharding import make_mesh, stack_shardings
from hope_jax.kernels.newton_schulz import QUINTIC, iterate_all
from hope_jax.planning.counts import count

rng = np.random.default_rng(0)
shapes = {"a": (5, 8, 16), "b": (2, 16, 8), "c": (16, 8), "d": (4, 8, 8)}
tree = {name: rng.normal(size=shape) / 40 for name, shape in shapes.items()}
wanted = jax.jit(lambda t: iterate_all(t, QUINTIC, 5))(tree)
mesh = make_mesh()
for at_rest in (False, True):
    spread = stack_shardings(mesh, split_at_rest=at_rest)
    put = jax.device_put(tree, spread[1]) if not at_rest else {
        n: jax.device_put(t, jax.NamedSharding(mesh, jax.P(*[None] * int(np.argmax(t.shape)), "data")))
        for n, t in tree.items()}
    compiled = jax.jit(lambda t: iterate_all(t, QUINTIC, 5, spread)).lower(put).compile()
    for name, got in compiled(put).items():
        assert got.shape == shapes[name]
        np.testing.assert_allclose(got, wanted[name], rtol=1e-12, atol=1e-13)
    counts = count(compiled.as_text(), 4)
    # Of 8 matrices of one shape and 4 of another: 2 and 1 on each device.
    own = 5 * (2 * (2 * 2 * 8 * 8 * 16 + 2 * 8**3) + 3 * 2 * 8**3)
    assert counts.total_flops == own, (counts.total_flops, own)
    gathered = {kind: each.times for kind, each in counts.collectives.items()}
    assert set(gathered) == {"all-to-all"} if at_rest else gathered == {"all-gather": 2}, gathered
"""


def test_each_device_iterates_its_share() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
