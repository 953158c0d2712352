"""Self-modifying memories (Eqs. 83-93): the read of a group of memories, its write by one chunk, and the pass
over many chunks."""

from hope_jax.kernels.self_mod.chunk_pass import Inputs, Make, Pass, sweep
from hope_jax.kernels.self_mod.chunked import Rule, Tokens, read, write_chunk
from hope_jax.kernels.self_mod.group import Layout, Part, Stacked, layout_of, stack, unstack
from hope_jax.kernels.self_mod.products import Group, Products

__all__ = [
    "Group",
    "Inputs",
    "Layout",
    "Make",
    "Part",
    "Pass",
    "Products",
    "Rule",
    "Stacked",
    "Tokens",
    "layout_of",
    "read",
    "stack",
    "sweep",
    "unstack",
    "write_chunk",
]
