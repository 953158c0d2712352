"""Causal depthwise convolution over time, with the history that a stream carries."""

from hope_jax.kernels.causal_conv.shifted import causal_conv
