"""Which part of the model an operation of the compiled step belongs to, and what it does.

Every operation keeps the path of names (`op_name`) under which it was traced: flax modules and
`jax.named_scope`. The first name of `PARTS` in the path has the operation. A fusion belongs to the
matrix product in it. Operations without a name of their own take it from what is fused into them, from the
operations beside them (the compiler drops the names of products that it turns round), or from the loop that
they are in.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from hope_jax.planning import hlo
from hope_jax.planning.counts import Computation, product_flops
from hope_jax.planning.hlo import Instruction

PARTS = {
    "outer_step": "outer optimizer",
    "gradient_sum": "gradients: products, sums",
    "cms_write": "CMS write",
    "self_modifier": "SelfModifier",
    "titan_write": "TITAN write",
    "write": "writes: states in and out",
    "self_mod": "self-modifying Titans",
    "gated_deltanet": "Gated DeltaNet",
    "attn": "attention",
    "mlp": "MLP",
    "cms": "CMS read",
    "titan": "TITAN read",
    "head": "head and loss",
    "final_norm": "head and loss",
    "teach": "teach signal",
}
"""Name in a path -> part; the first that is in it wins."""

OTHER = "other"
_CONTROL = {"while", "conditional", "call"}
_CALLS = ("calls", "body", "condition", "to_apply", *hlo.BRANCHES)


class Op(NamedTuple):
    """backward, recomputed: in a backward pass; forward work done again there. product_flops: of the matrix
    products in it. source: file:line that traced it."""

    part: str
    backward: bool
    recomputed: bool
    product_flops: float
    source: str


def operations(text: str) -> dict[str, Op]:
    """The operations of `compiled.as_text()` by name, without loops, conditionals and calls."""
    computations, sources = hlo.parse(text).computations, _sources(text)
    around: dict[str, str] = {}  # computation -> paths of the loops, branches and fusions that it is in
    found = {}
    for name, inside in reversed(computations.items()):  # callers stand behind what they call
        for it in inside.values():
            for called in it.called(*_CALLS):
                around.setdefault(called, f"{_op_name(it)}\n{around.get(name, '')}")
    for name, inside in computations.items():
        for it in inside.values():
            if it.opcode not in _CONTROL:
                fused = list(_fused(computations, it))
                flops = [(sum(product_flops(home, each).values()), each) for home, each in [(inside, it), *fused]]
                products = [each for work, each in flops if work]
                beside = [] if _op_name(it) else _beside(inside, it)
                paths = [*map(_op_name, (*products, it, *(e for _, e in fused), *beside)), around.get(name, "")]
                path = next((path for path in paths if part_of(path) != OTHER), _op_name(it))
                frame = re.search(r"stack_frame_id=(\d+)", it.attributes)
                source = sources.get(frame[1], "") if frame else ""
                backward, recomputed = "transpose(" in path, "rematted" in path
                found[it.name] = Op(part_of(path), backward, recomputed, sum(w for w, _ in flops), source)
    return found


def _fused(computations: dict[str, Computation], it: Instruction) -> Iterator[tuple[Computation, Instruction]]:
    """What is fused into an operation, with the computation that it stands in."""
    for name in it.called("calls") if it.opcode == "fusion" else ():
        for each in computations[name].values():
            yield computations[name], each
            yield from _fused(computations, each)
