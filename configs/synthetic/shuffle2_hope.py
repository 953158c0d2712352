"""Shuffle-2 by HOPE (docs/evals/synthetic.md).

Command:  python -m hope_jax.launch --config=configs/synthetic/shuffle2_hope.py
Hardware: 1 CPU core
Time:     2 minutes beside other processes
Expect:   96 % of the strings right; of those up to twice as long 13 %.
"""

from hope_jax.config.experiment import OrderedConfig
from hope_jax.config.presets import synthetic_hope_config


def get_config() -> OrderedConfig:
    return synthetic_hope_config("shuffle2", seq_len=50, vocab_size=8)
