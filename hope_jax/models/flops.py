"""Useful floating-point operations of a train step per token, for the share of a machine's peak.

Counted are the matrix products that the mode's equations need, each once: 2mn for a vector times an m x n
matrix; recomputation is not counted, nor are norms, activations, softmax, embedding rows and what is done
once a period (inner optimizers, bounds). docs/speed.md has the table of terms.
"""

from typing import NamedTuple

from hope_jax.models.spec import ModelSpec


class Part(NamedTuple):
    """A stretch of a block, in order. forward: FLOPs of its products for one token. signal: of the cotangent
    of its input alone. backward: of all its cotangents. write: of its write. write_backward: of the first
    order gradient of parameters that act through the write alone. tapped: its output has a teach signal.
    """

    forward: float
    signal: float
    backward: float
    write: float = 0.0
    write_backward: float = 0.0
    tapped: bool = False


def train_flops_per_token(
    spec: ModelSpec, tokens: int, mode: str, truncate: int, *, per_layer: bool = True
) -> float:
    """Of rows of `tokens` tokens in a mode of `train.algorithm_mode`.

    truncate: K, tokens after which `online` cuts gradients. per_layer: False: the teach signal is the head's.
    """
    streams = mode != "two_pass"
    cut = min(truncate, tokens) if mode == "online" else tokens
    parts = _block(spec, tokens, cut, min(spec.chunk_size, tokens) if streams else tokens)
    head, layers = 2.0 * spec.dim * spec.vocab_size, spec.num_layers
    forward = head + layers * sum(part.forward for part in parts)
    write = layers * sum(part.write for part in parts)
    signal = _signal(spec, parts) if per_layer else 0.0
    if mode == "through_writes":
        # Every product of read, signal and write has two cotangents. Without memories nothing has a signal.
        return 3 * (forward + write + (head + signal if write else 0.0))
    backward = 2 * head + layers * sum(part.backward for part in parts)
    if mode == "online":
        backward += layers * sum(part.write_backward for part in parts)
        if cut > spec.chunk_size and write:
            # The signal has a backward pass of its own, but for what no other token's loss reaches: the head
            # and what follows attention or self-modifying Titans in the last block.
            backward += max(signal - sum(part.signal for part in parts[1:]), 0.0)
    return forward + backward + write


def _signal(spec: ModelSpec, parts: list[Part]) -> float:
    """Cotangents of the inputs of everything in the blocks that lies above the first block's lowest tap."""
    every = sum(part.signal for part in parts)
    below = every
    if spec.own_output:
        lowest = next((i for i, part in enumerate(parts) if part.tapped), len(parts) - 1)
        # Of the part with that tap, a write needs the cotangent of the hidden layer.
        below = sum(part.signal for part in parts[: lowest + 1]) - parts[lowest].signal / 2
    return spec.num_layers * every - below


def _block(spec: ModelSpec, tokens: int, cut: int, chunk: int) -> list[Part]:
    """The parts of a block: first what mixes tokens, then what reads each alone."""
    dim, variant = spec.dim, spec.block_variant
    own = 4.0 * dim * spec.cms_hidden
    level = _memory(spec, own, pull=not spec.own_output)
    after = {
        "transformer": [_matrices(4.0 * dim * spec.mlp_hidden)],
        "transformer_pp": [_matrices(6.0 * dim * (-(-2 * spec.mlp_hidden // 24) * 8))],
        "hope_attention": [level] * len(spec.cms_levels),
        "hope_selfmod": [level] * len(spec.cms_levels),
        "hope_hybrid": [_titan(spec, tokens), *[level] * len(spec.cms_levels)],
        "titan": [_titan(spec, tokens)],
    }[variant]
    first = _self_mod(spec) if variant == "hope_selfmod" else _attention(spec, tokens, cut, chunk)
    return [first, *after]


def _matrices(forward: float) -> Part:
    """Products with trained matrices: as many for the input's cotangent, and for the matrices'."""
    return Part(forward, signal=forward, backward=2 * forward)


def _attention(spec: ModelSpec, tokens: int, cut: int, chunk: int) -> Part:
    """Four projections; scores and their weighted sum over the keys that a token sees on average. Keys and
    values from before a cut have no cotangents, which is half of the backward products."""
    projections = _matrices(8.0 * spec.dim * spec.dim)
    seen = min(tokens / 2, spec.sliding_window or tokens)
    scores = 4.0 * spec.dim * seen

    def backward(length: int) -> float:
        recent = min(length / 2, seen)
        return 8.0 * spec.dim * recent + 4.0 * spec.dim * (seen - recent)

    return Part(
        projections.forward + scores,
        projections.signal + backward(chunk),
        projections.backward + backward(cut),
    )


def _self_mod(spec: ModelSpec) -> Part:
    """Self-modifying Titans with their writes: 36 products with a D x D matrix, twice that backward."""
    return _matrices(72.0 * spec.dim * spec.dim)


def _memory(spec: ModelSpec, forward: float, *, pull: bool) -> Part:
    """An MLP memory, read with what the context has added to it: one product a matrix. Its write is an outer
    product a matrix; its cotangents are the outer gradient's times a number a token, but where `pull` says
    that its signal is another than that: then the hidden layer's takes a product."""
    read = _matrices(forward)
    return read._replace(write=forward + (forward / 2 if pull else 0.0), tapped=True)


def _titan(spec: ModelSpec, tokens: int) -> Part:
    """A TITAN memory. Its write also reads the SelfModifier, and `online` differentiates through the write to
    it: cotangents of both factors of the outer products, through the pull back, and of the SelfModifier's
    matrices and hidden layers."""
    dim, hidden = spec.dim, spec.titan_hidden
    memory = _memory(spec, 4.0 * dim * hidden, pull=spec.self_modifier or not spec.own_output)
    if not spec.self_modifier:
        return memory
    inputs, rest = 6.0 * dim * hidden, 2.0 * hidden * hidden + 2.0 * hidden * dim
    learning = 1.5 * memory.forward + inputs + 2 * rest
    read_again = spec.titan_level.lr > 0 and max(spec.titan_level.update_period, spec.chunk_size) < tokens
    return memory._replace(write=memory.write + inputs + rest, write_backward=learning if read_again else 0.0)
