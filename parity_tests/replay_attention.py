"""Replays the attention block (`attention_*`): whole, and in pieces with its cache."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.models.attention import ReadContext, init_cache, read
from hope_jax.models.documents import NO_SEGMENT
from parity_tests import convert
from parity_tests.golden_file import Golden
from parity_tests.quick import quick_jit
from parity_tests.reference_style import spec_of


def replay(g: Golden) -> None:
    """Outputs at once, outputs of the pieces, and the final cache."""
    spec = spec_of(
        "transformer",
        g.config["dim"],
        g.config["heads"],
        qk_norm="l2" if g.config["qk_l2_norm"] else "none",
        local_conv_window=g.config["local_conv_window"] or 0,
    )
    attend, x = quick_jit(partial(read, spec)), jnp.asarray(g.inputs["x"])
    params = jax.tree.map(jnp.asarray, convert.attention(g.weights))
    tokens, cuts = x.shape[1], g.config["cache_cut_points"] or []
    everywhere = jnp.ones(x.shape[:2], jnp.int32)
    g.compare("y", attend(params, x, ReadContext(jnp.int32(0), everywhere, None), None)[0])
    if not cuts:
        return
    cache = init_cache(spec, len(x), tokens)
    for i, (start, stop) in enumerate(zip([0, *cuts], [*cuts, tokens], strict=True)):
        seen = everywhere.at[:, stop:].set(NO_SEGMENT)
        context = ReadContext(jnp.int32(start), everywhere[:, start:stop], seen)
        y, cache = attend(params, x[:, start:stop], context, cache)
        g.compare(f"cached_pieces.{i}", y)
    for name in ("key", "value"):
        g.compare(f"final_cache.{name}", np.asarray(getattr(cache, name)).transpose(0, 2, 1, 3))
