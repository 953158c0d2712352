"""The stream that is timed stands where it is told, and its window keeps it small."""

import jax
import numpy as np

from hope_jax.perf.streams import StreamRun
from tests.perf import tiny


def test_a_stream_reads_from_where_it_is_told_to_where_it_is_told() -> None:
    config = tiny.config("transformer", model__sliding_window=8)
    run = StreamRun(config, 4096)
    for start in (0, 2048):
        logits = run(start, start + 2 * run.tokens)
        assert run.position == start + 2 * run.tokens
        assert logits.shape == (1, run.tokens, config.model.vocab_size) and np.isfinite(logits).all()
    cache = jax.tree.leaves(run._state.carry.cache)
    assert max(leaf.shape[1] for leaf in cache) < 64
