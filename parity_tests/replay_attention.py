"""Replays the attention block (`attention_*`): whole, and in pieces with its cache."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.models.attention import Attention, ReadContext, enter, init_cache
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
    module, x = Attention(spec), jnp.asarray(g.inputs["x"])
    variables = {"params": jax.tree.map(jnp.asarray, convert.attention(g.weights))}
    tokens, cuts = x.shape[1], g.config["cache_cut_points"] or []

    def whole(row: Any) -> Any:
        return module.apply(
            variables, row, ReadContext(jnp.int32(0), jnp.ones(tokens, jnp.int32), None), None
        )[0]

    g.compare("y", quick_jit(jax.vmap(whole))(x))
    if not cuts:
        return

    def piece(row: Any, cache: Any, start: Any, entered: Any) -> Any:
        here = jnp.ones(len(row), jnp.int32)
        y, rows = module.apply(variables, row, ReadContext(start, here, entered), cache)
        return y, enter(spec, cache, rows, start)

    run = quick_jit(jax.vmap(piece, in_axes=(0, 0, None, None)))
    cache = jax.tree.map(lambda t: jnp.stack([t] * len(x)), init_cache(spec, tokens))
    for i, (start, stop) in enumerate(zip([0, *cuts], [*cuts, tokens], strict=True)):
        entered = jnp.where(jnp.arange(tokens) < stop, 1, -1)
        y, cache = run(x[:, start:stop], cache, jnp.int32(start), entered)
        g.compare(f"cached_pieces.{i}", y)
    for name in ("key", "value"):
        g.compare(f"final_cache.{name}", np.asarray(getattr(cache, name)).transpose(0, 2, 1, 3))
