"""Double precision for the whole test process: oracles and golden files are compared to 1e-9.

The flag is global to a process, so every test runs under it; production code names its dtypes.
"""

import jax

jax.config.update("jax_enable_x64", True)
