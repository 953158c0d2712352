"""Re-reading a chunk after its write: nothing changes without a write, and a small step lowers the loss."""

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.core.types import Batch
from hope_jax.learning.chunk import OnlineRule
from hope_jax.learning.reread import Reread, reread
from hope_jax.learning.teach import Teach
from hope_jax.memory.levels import Level
from hope_jax.models.lm import HopeModel
from tests.specs import small_spec


def measure(lr: float) -> Reread:
    wide = jnp.dtype("float64")
    levels = {"fast": Level(4, lr, "sgd"), "slow": Level(16, lr, "sgd")}
    spec = small_spec("hope_attention", 8, levels, vocab_size=32, dim=16, dtype=wide)
    model = HopeModel(spec)
    tokens = jax.random.randint(jax.random.key(1), (3, 33), 0, 32)
    batch = Batch(tokens[:, :-1], tokens[:, 1:], jnp.ones((3, 32), jnp.int32))
    rule = OnlineRule(chunk_size=8, truncate=8, teach=Teach(scale=1.0))
    return jax.jit(lambda p: reread(model, rule, p, batch))(model.init_params(jax.random.key(0)))


def test_a_rate_of_zero_changes_nothing_and_a_small_one_lowers_every_chunk() -> None:
    (before, after, _, _), stepped = measure(0.0), measure(1e-3)
    # Two readings, one with its signal: equal to rounding.
    np.testing.assert_allclose(after, before, rtol=1e-13)
    assert before.shape == (4, 3)
    assert (stepped[1] < stepped[0]).all()
    # The first chunk is read before anything was written.
    np.testing.assert_allclose(stepped[0][0], before[0], rtol=1e-12)
    assert stepped[2]["fast"].all()
    np.testing.assert_array_equal(stepped[2]["slow"][:, 0], [False, True, False, True])
