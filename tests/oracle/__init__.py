"""The naive model: the equations of the memories once more, with nothing but loops. Read it in this order:

* `layers`: what holds no memory, at one token: norms, activations, the convolution, attention;
* `writes`: one memory's write at the end of a period: gate, inner rule, bounds;
* `cms`: the levels of a CMS, sequential, independent or nested: their reads, gradients and periods;
* `model`: blocks and head at one token, then token after token;
* `stream`: the online loop: read a chunk, take its teach signal, write what is due; the outer gradient;
* `titan`, `self_mod`, `gated_deltanet`: the other memories, each by itself.

All of it is float64, for one example (or an explicit list of examples that share their memories), slow on
purpose, and independent of `hope_jax`: no vmap, no scan, no linen. `jax.grad` is taken only where the
mathematics asks for a gradient. Not of the model: `cases` draws small examples, and `bridge` says in
production's types what the oracle says in its own; it alone imports production code.
"""
