"""The writes of one chunk into one level of a CMS, under a linear inner optimizer."""

from hope_jax.kernels.cms_write.coefficients import Coefficients, root, shrink
from hope_jax.kernels.cms_write.gram import Affine, Map, Rows, Written, write_periods

__all__ = ["Affine", "Coefficients", "Map", "Rows", "Written", "root", "shrink", "write_periods"]
