"""The gated delta rule (arXiv 2412.06464): what a state reads and writes at every token, in chunks."""

from hope_jax.kernels.gated_deltanet.chunked import gated_delta
