"""The writes of one chunk into one matrix of a CMS level, under a linear inner optimizer."""

from hope_jax.kernels.cms_write.gram import Written, root, shrink, write_periods

__all__ = ["Written", "root", "shrink", "write_periods"]
