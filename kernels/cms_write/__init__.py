"""The writes of one chunk into one level of a CMS, under a linear inner optimizer."""

from hope_jax.kernels.cms_write.coefficients import Coefficients
from hope_jax.kernels.cms_write.gram import Affine, Map, Rows, Written, gram_of, write_periods
from hope_jax.kernels.cms_write.kept import root, shrink

__all__ = ["Affine", "Coefficients", "Map", "Rows", "Written", "gram_of", "root", "shrink", "write_periods"]
