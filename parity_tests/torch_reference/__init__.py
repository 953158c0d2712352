"""A torch reference of our own: the equations once more, written to be read, without JAX.

Reads, writes, streams and gradients of one context (one example with its own fast state), as explicit loops
over chunks, layers, levels and tokens. Parameters are nested dicts of tensors in production's layout
(matrices [in, out], those inside self-modifying memories [out, in]; every leaf of `blocks` has a leading
layer axis); states are small dataclasses. Inner gradients are `torch.func.grad` of the inner objective
itself, outer ones `torch.autograd`; what a mode cuts is a `.detach()` that can be pointed at.

The golden files hold the published code's numbers and so check the parts in which we follow it. This
reference follows our own rules, and checks what they cannot: chunks, periods, gates, teach signals, carries,
cuts, and the gradient through writes. `parity_tests/test_torch_reference.py` compares.

* `settings`: everything that is not a parameter. `trees`: maps over parameters and states.
* `layers`: norms, rotary positions, convolution, attention over an explicit list of keys, MLPs.
* `cms`: one level's read, the connections of levels, the objective of a write. `titan`: the same of the TITAN
  memory, its SelfModifier, the Titans paper's rule. `nested`: CMS levels whose starts slower ones learn.
* `inner`: inner optimizers and bounds. `periods`: what a period gathers, the gate, the write at its end.
* `self_mod`: self-modifying Titans, token by token.
* `model`: blocks and whole models. `teach`: signals and surprise.
* `stream`: the online loop and its outer gradients; reading a whole sequence at once is its one-chunk case.

It imports torch alone. Activations have `Arch.dtype`; states and statistics have the parameters' dtype.
"""
