"""Useful floating-point operations of a train step per token, for the share of a machine's peak.

What counts is said in `hope_jax.memory.flops`; embedding rows do not. docs/speed.md has the table of terms.
"""

from hope_jax.memory.flops import Flops
from hope_jax.models import blocks
from hope_jax.models.spec import ModelSpec


def train_flops_per_token(
    spec: ModelSpec, tokens: int, mode: str, truncate: int, *, per_layer: bool = True
) -> float:
    """Useful operations of a token in rows of `tokens` tokens, in a mode of `train.algorithm_mode`.

    truncate: K, tokens after which `online` cuts gradients. per_layer: False: the teach signal is the head's.
    """
    streams = mode != "two_pass"
    cut = min(truncate, tokens) if mode == "online" else tokens
    parts = blocks.flops(spec, tokens, cut, min(spec.chunk_size, tokens) if streams else tokens)
    head, layers = 2.0 * spec.dim * spec.vocab_size, spec.num_layers
    forward = head + layers * sum(part.forward for part in parts)
    write = layers * sum(part.write for part in parts)
    signal = _signal(spec, parts) if per_layer else 0.0
    if mode == "through_writes":
        # Every product of read, signal and write has two cotangents. Without memories nothing has a signal.
        return 3 * (forward + write + (head + signal if write else 0.0))
    if mode == "two_pass" and spec.memory.lifetime == "context":
        # No read sees these writes, and their statistics are computed on logged steps alone.
        write = 0.0
    backward = 2 * head + layers * sum(part.backward for part in parts)
    if mode == "online":
        backward += layers * sum(part.write_backward for part in parts)
        if cut > spec.chunk_size and write:
            # The signal has a backward pass of its own, but for what no other token's loss reaches: the head
            # and what follows attention or self-modifying Titans in the last block.
            backward += max(signal - sum(part.signal for part in parts[1:]), 0.0)
    return forward + backward + write


def _signal(spec: ModelSpec, parts: list[Flops]) -> float:
    """Operations for the cotangents of inputs in the blocks, down to the first block's lowest tap."""
    every = sum(part.signal for part in parts)
    below = every
    if spec.own_output:
        lowest = next((i for i, part in enumerate(parts) if part.tapped), len(parts) - 1)
        # Of the part with that tap, a write needs the cotangent of the hidden layer.
        below = sum(part.signal for part in parts[: lowest + 1]) - parts[lowest].signal / 2
    return spec.num_layers * every - below
