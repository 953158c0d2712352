"""Softmax attention of queries to keys that are masked by position, window and document."""

from hope_jax.kernels.attention.blocks import Sight
from hope_jax.kernels.attention.chosen import attend, form_in
