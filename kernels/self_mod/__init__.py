"""Self-modifying memories (Eqs. 83-93): read of a group of memories, write by one chunk, pass over many."""

from hope_jax.kernels.self_mod.chunk_pass import Make, Mean, Pass, read_chunk, sweep
from hope_jax.kernels.self_mod.chunked import Rule, Tokens, write_chunk
from hope_jax.kernels.self_mod.group import Group, change, layout_of, stack, unstack
