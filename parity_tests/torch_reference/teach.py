"""Teach signals: gradients of a chunk's summed loss, processed; and their surprise."""

import torch
from torch import Tensor

from parity_tests.torch_reference.layers import length
from parity_tests.torch_reference.model import ByLayer, Read
from parity_tests.torch_reference.periods import Signal
from parity_tests.torch_reference.settings import Rules


def raw_signals(read: Read, loss: Tensor, taps: ByLayer, rules: Rules, *, differentiable: bool) -> ByLayer:
    """d loss / d tap for each layer and tap; under source global, d loss / d (input of the final norm) at
    every block. differentiable: a derivative may go through them."""
    flat = [tap for layer in taps for tap in layer.values()]
    wanted = [*flat, read.pre_norm]
    grads = torch.autograd.grad(loss, wanted, create_graph=differentiable, retain_graph=True)
    by_tap = iter(grads[:-1])
    found = [{name: next(by_tap) for name in layer} for layer in taps]
    if rules.source == "global":
        found = [{**layer, "block": grads[-1].to(layer["block"].dtype)} for layer in found]
    return found


def clipped(signal: Tensor, limit: float) -> Tensor:
    """Each token's vector bounded to the norm `limit`; 0: as it is."""
    return signal / (length(signal) / limit).clamp(min=1.0)[..., None] if limit else signal


def surprise(rules: Rules, scaled: Tensor, losses: Tensor, logits: Tensor) -> Tensor:
    """Of each token [n]: norm of the scaled signal at the block, loss, or entropy of the prediction."""
    if rules.metric == "l2":
        return length(scaled)
    if rules.metric == "loss":
        return losses
    log_p = torch.log_softmax(logits, -1)
    return -(log_p.exp() * log_p).sum(-1)


def process(
    rules: Rules, raw: dict[str, Tensor], read: Read, losses: Tensor, targets: list[int]
) -> dict[str, Signal]:
    """The signals of one layer by tap: x teach_scale; surprise is measured; x schedule; clip per token."""
    scaled = {name: signal * rules.teach_scale for name, signal in raw.items()}
    amount = surprise(rules, scaled["block"], losses, read.logits).detach()
    final = {name: clipped(signal * rules.schedule, rules.teach_clip) for name, signal in scaled.items()}
    active = (final["block"] != 0).any(-1).tolist()
    counted = (scaled["block"] != 0).any(-1).tolist() if rules.metric == "l2" else [t >= 0 for t in targets]
    return {name: Signal(teach, active, counted, amount.tolist()) for name, teach in final.items()}
