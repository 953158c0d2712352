"""The backward memory of a pass of self-modifying Titans grows with its length by the saved blocks alone."""

import jax
import jax.numpy as jnp
import pytest
from hope_jax.kernels.self_mod.chunk_pass import BLOCK_TOKENS

from hope_jax.perf import kernel_benchmarks as bench

DIM = 256
WORD = 4


def temporaries(tokens: int) -> int:
    """Bytes, by the compiler's analysis, of the gradient by parameters and inputs of one sequence."""
    params = jax.eval_shape(lambda: jax.tree.map(jnp.float32, bench.self_mod_params(DIM)))
    x_btd = jax.ShapeDtypeStruct((1, tokens, DIM), jnp.float32)
    gradient = jax.jit(jax.grad(lambda p, x: jnp.square(bench.self_mod_pass(p, x)).sum(), argnums=(0, 1)))
    analysis = gradient.lower(params, x_btd).compile().memory_analysis()
    assert analysis is not None
    return int(analysis.temp_size_in_bytes)


@pytest.mark.nightly
def test_longer_passes_save_a_blocks_weights_and_its_tokens_products_and_nothing_else() -> None:
    short, long = temporaries(512), temporaries(2048)
    weights = 8 * DIM**2 + 4 * DIM  # of all memories, at a block's start
    rows = 40 * DIM * BLOCK_TOKENS  # products' results (29 D), inputs and what is made of them
    block = WORD * (weights + rows)
    blocks = (2048 - 512) // BLOCK_TOKENS
    print(f"{short / 2**20:.1f} MiB at 512, {long / 2**20:.1f} at 2048; blocks: {blocks * block / 2**20:.1f}")
    assert long - short <= blocks * block
