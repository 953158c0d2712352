"""(abab)* by HOPE (docs/evals/synthetic.md).

Command:  python -m hope_jax.launch --config=configs/synthetic/abab_hope.py
Hardware: 1 CPU core
Time:     2 minutes beside other processes
Expect:   All strings right; of those up to twice as long a third.
"""

from hope_jax.config.experiment import OrderedConfig
from hope_jax.config.presets import synthetic_hope_config


def get_config() -> OrderedConfig:
    return synthetic_hope_config("abab", seq_len=50, vocab_size=5)
