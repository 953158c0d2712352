"""Softmax attention of queries to keys that are masked by position, window and document."""

from hope_jax.kernels.attention.forms import Sight, attend, form_in
