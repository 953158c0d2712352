"""Self-modifying memories (Eqs. 83-93): the read of a group of memories and its write by one chunk."""

from hope_jax.kernels.self_mod.chunked import (
    Layout,
    Part,
    Rule,
    Stacked,
    Tokens,
    layout_of,
    read,
    stack,
    unstack,
    write_chunk,
)

__all__ = [
    "Layout",
    "Part",
    "Rule",
    "Stacked",
    "Tokens",
    "layout_of",
    "read",
    "stack",
    "unstack",
    "write_chunk",
]
