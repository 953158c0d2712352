"""Momentum in bfloat16 comes back from a checkpoint bit for bit, and only into a run that keeps it so."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.core import files
from hope_jax.core.errors import CheckpointError
from hope_jax.core.program import TrainState
from hope_jax.optim.outer import OptimRule, make_optimizer
from hope_jax.storage.checkpoint import Checkpointer, abstract
from tests.checkpoints import small_config

META = {"tokenizer_digest": "x", "versions": {}}


def state_of(dtype: str) -> TrainState:
    """After one step of a small model's matrices and vectors."""
    params = {"embed": jnp.ones((5, 3), jnp.float32), "blocks": {"attn": {"w_q": jnp.ones((2, 3, 3))}}}
    optimizer = make_optimizer(OptimRule(momentum_dtype=dtype))
    grads = jax.tree.map(lambda t: 0.1 * jnp.arange(1, t.size + 1, dtype=t.dtype).reshape(t.shape), params)
    opt_state = optimizer.update(grads, optimizer.init(params), params)[1]
    return TrainState(jnp.ones((), jnp.int32), params, opt_state, (), jax.random.key_data(jax.random.key(0)))


def test_it_comes_back_bit_for_bit_and_not_as_another_type(tmp_path: Path) -> None:
    state = state_of("bfloat16")
    kept, changed = (small_config(optim={"momentum_dtype": dtype}) for dtype in ("bfloat16", "float32"))
    with Checkpointer(tmp_path, kept.checkpoint, files.as_plain(kept), META) as checkpointer:
        checkpointer.save(1, state, {}, {})
        checkpointer.wait()
        restored = checkpointer.restore(abstract(state))
        assert restored is not None
    assert sum(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(restored.state)) == 2
    jax.tree.map(np.testing.assert_array_equal, restored.state, state)
    assert jax.tree.all(jax.tree.map(lambda a, b: a.dtype == b.dtype, restored.state, state))
    other = Checkpointer(tmp_path, changed.checkpoint, files.as_plain(changed), META)
    refused = pytest.raises(CheckpointError, match=r"momentum_dtype \(bfloat16 -> float32\)")
    with other as checkpointer, refused:
        checkpointer.restore(abstract(state_of("float32")))
