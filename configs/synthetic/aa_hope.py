"""(aa)* by HOPE (docs/evals/synthetic.md).

Command:  python -m hope_jax.launch --config=configs/synthetic/aa_hope.py
Hardware: 1 CPU core
Time:     7 minutes beside a dozen other processes
Expect:   All strings right, also those twice as long.
"""

from hope_jax.config import OrderedConfig
from hope_jax.presets import synthetic_hope_config


def get_config() -> OrderedConfig:
    return synthetic_hope_config("aa", seq_len=50, vocab_size=3)
