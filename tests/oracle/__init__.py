"""Naive oracles: the equations of the memories, written once more with nothing but loops.

Everything here is float64, one example (or an explicit list of examples), and independent of `hope_jax`:
no vmap, no scan, no linen. `jax.grad` is used only where the mathematics asks for a gradient. Slow on
purpose; a test of production code compares with it on small cases.

* `model`: reads. Norms, attention over explicit token lists, CMS, both variants and both styles.
* `inner`: one write. Gradient of a level, inner optimizers, bounds.
* `teach`: teach signals, their processing, surprise.
* `periods`: what a level gathers over a period, the gate, the write at its end.
* `cms_connections`: what nested CMS levels do at the end of a period.
* `stream`: the online chunk loop, with the outer gradient; `two_pass` reads as its one-chunk case.
* `kernels`: each kernel's sum, one term at a time.
* `reference`: the published code's own rules where they differ (for its golden files only).
"""
