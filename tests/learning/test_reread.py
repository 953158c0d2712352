"""Re-reading a chunk after its write: nothing changes without a write, and a small step lowers the loss."""

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.core.types import Batch
from hope_jax.learning.chunk import OnlineRule
from hope_jax.learning.reread import Reread, reread
from hope_jax.learning.teach import TeachRule
from hope_jax.memory.levels import LevelSpec
from hope_jax.models.lm import HopeModel
from hope_jax.models.spec import ModelSpec


def measure(lr: float) -> Reread:
    wide = jnp.dtype("float64")
    spec = ModelSpec(
        block_variant="hope_attention",
        style="modern",
        vocab_size=32,
        dim=16,
        num_layers=2,
        heads=2,
        mlp_hidden=32,
        cms_hidden=32,
        cms_levels=(LevelSpec("fast", 4, lr, "sgd"), LevelSpec("slow", 16, lr, "sgd")),
        chunk_size=8,
        dtype=wide,
        param_dtype=wide,
    )
    model = HopeModel(spec)
    tokens = jax.random.randint(jax.random.key(1), (3, 33), 0, 32)
    batch = Batch(tokens[:, :-1], tokens[:, 1:], jnp.ones((3, 32), jnp.int32))
    rule = OnlineRule(chunk_size=8, truncate=8, teach=TeachRule(scale=1.0))
    return jax.jit(lambda p: reread(model, rule, p, batch))(model.init_params(jax.random.key(0)))


def test_a_rate_of_zero_changes_nothing_and_a_small_one_lowers_every_chunk() -> None:
    still, stepped = measure(0.0), measure(1e-3)
    # Two readings, one with its signal: equal to rounding.
    np.testing.assert_allclose(still.after, still.before, rtol=1e-13)
    assert still.before.shape == (4, 3)
    assert (stepped.after < stepped.before).all()
    # The first chunk is read before anything was written.
    np.testing.assert_allclose(stepped.before[0], still.before[0], rtol=1e-12)
    assert stepped.written["fast"].all()
    np.testing.assert_array_equal(stepped.written["slow"][:, 0], [False, True, False, True])
