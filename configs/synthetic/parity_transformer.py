"""Parity by a transformer, which fails, as published (docs/evals/synthetic.md).

Command:  python -m hope_jax.launch --config=configs/synthetic/parity_transformer.py
Hardware: 1 CPU core
Time:     11 minutes beside a dozen other processes
Expect:   A third of the strings of training lengths right, none of the longer ones.
"""

from hope_jax.config.experiment import OrderedConfig
from hope_jax.config.presets import synthetic_config


def get_config() -> OrderedConfig:
    return synthetic_config("parity", seq_len=50, vocab_size=4)
