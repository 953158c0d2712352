"""Memory of `through_writes` by the compiler's analysis: what chunks start from grows, and little else."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from hope_jax.core.types import Batch
from hope_jax.learning import modes
from hope_jax.learning.chunk import OnlineRule
from hope_jax.learning.teach import Teach
from hope_jax.memory.levels import Level
from hope_jax.models.lm import HopeModel
from tests.specs import small_spec

N, DIM, BATCH, SHORT = 16, 64, 2, 128
VARIANTS = ("hope_attention", "hope_selfmod", "hope_hybrid", "titan")


def size_of(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def measure(variant: str, tokens: int) -> tuple[int, int]:
    """Bytes of temporaries of one gradient, and of the fast states and carries that its chunks start from."""
    model = HopeModel(
        small_spec(
            variant, N, {"fast": Level(4, 0.1), "slow": Level(32, 0.1)}, titan=Level(8, 0.1),
            own=(8, 64), own_options={"local_conv_window": 4}, vocab_size=256, dim=DIM, heads=4,
        )
    )  # fmt: skip
    rule = OnlineRule(N, N, Teach())
    params = jax.eval_shape(model.init_params, jax.random.key(0))
    batch = Batch(*[jax.ShapeDtypeStruct((BATCH, tokens), jnp.int32)] * 3)

    def gradients(params: Any, batch: Batch) -> Any:
        fast = model.init_fast_state(params, BATCH)
        return modes.through_writes(model, rule, params, fast, batch, jnp.ones(()))

    compiled = jax.jit(gradients).lower(params, batch)
    quick = compiled.compile(compiler_options={"xla_backend_optimization_level": 0})
    starts = jax.eval_shape(
        lambda p: (model.init_fast_state(p, BATCH), model.init_carry(BATCH, tokens)), params
    )
    analysis = quick.memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes, size_of(starts) * (tokens // N)


@pytest.mark.nightly
@pytest.mark.parametrize("variant", VARIANTS)
def test_eight_times_the_tokens_cost_half_more_and_what_chunks_start_from(variant: str) -> None:
    short, _ = measure(variant, SHORT)
    long, carried = measure(variant, 8 * SHORT)
    print(f"{variant}: {short / 2**20:.1f} MiB at {SHORT} tokens, {long / 2**20:.1f} at {8 * SHORT},"
          f" of which carried {carried / 2**20:.1f}")  # fmt: skip
    assert long <= 1.5 * short + carried
