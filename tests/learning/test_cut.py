"""How far outer gradients go back: `train.truncate_tokens`."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.config import assemble
from hope_jax.config.experiment import DataConfig, ExperimentConfig, TrainConfig
from hope_jax.core.types import NO_TARGET, Batch
from hope_jax.learning import modes
from hope_jax.models.lm import HopeModel
from hope_jax.models.spec import Architecture

CHUNK, TOKENS = 4, 16
QUICK = {"xla_backend_optimization_level": 0}


def embedding_gradient(truncate_tokens: int) -> np.ndarray:
    """Of the last token's loss; each token has an embedding row of its own, numbered from 1."""
    config = ExperimentConfig(
        model=Architecture("transformer", vocab_size=TOKENS + 1, dim=4, num_layers=1, heads=1),
        data=DataConfig(seq_len=TOKENS),
        train=TrainConfig(online_chunk_size=CHUNK, truncate_tokens=truncate_tokens),
    )
    model, rule = HopeModel(assemble.model_spec(config)), assemble.online_rule(config)
    tokens = jnp.arange(1, TOKENS + 1, dtype=jnp.int32)[None]
    batch = Batch(tokens, jnp.full_like(tokens, NO_TARGET).at[0, -1].set(0), jnp.ones_like(tokens))
    params = model.init_params(jax.random.key(0))
    run = jax.jit(partial(modes.online, model, rule), compiler_options=QUICK)
    gradient, _ = run(params, model.init_fast_state(params, 1), batch, jnp.ones(()))
    return np.asarray(gradient["embed"])


def test_the_gradient_reaches_as_far_as_truncate_tokens() -> None:
    """Through keys and values of earlier chunks, to those after the last cut. The head, which shares the
    embedding, has the same part in every gradient."""
    of_chunk = embedding_gradient(0)
    for truncate_tokens in (2 * CHUNK, TOKENS):
        reached = np.abs(embedding_gradient(truncate_tokens) - of_chunk).max(-1) > 1e-5
        wanted = [TOKENS - truncate_tokens < row <= TOKENS - CHUNK for row in range(TOKENS + 1)]
        assert reached.tolist() == wanted
