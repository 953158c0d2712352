"""Useful floating-point operations of a stretch of a block for one token, by what they are for.

Counted are the matrix products that the equations need, each once: 2mn for a vector times an m x n matrix;
recomputation is not counted, nor are norms, activations, softmax and what is done once a period.
"""

from typing import NamedTuple


class Flops(NamedTuple):
    """forward: of its products for one token. signal: of the cotangent of its input alone. backward: of all
    its cotangents. write: of its write. write_backward: of the first order gradient of parameters that act
    through the write alone. tapped: its output has a teach signal.
    """

    forward: float
    signal: float
    backward: float
    write: float = 0.0
    write_backward: float = 0.0
    tapped: bool = False


def matrices(forward: float) -> Flops:
    """Products with trained matrices; the cotangents of input and matrices take as many again, each."""
    return Flops(forward, signal=forward, backward=2 * forward)


def mlp_memory(forward: float, *, pull: bool) -> Flops:
    """An MLP memory, read with what the context has added to it: one product a matrix. Its write is an outer
    product a matrix; its cotangents are the outer gradient's times a number a token, but where `pull` says
    that its signal is another than that: then the hidden layer's takes a product."""
    write = forward + (forward / 2 if pull else 0.0)
    return matrices(forward)._replace(write=write, tapped=True)
