"""Compression (after MAD) by HOPE-attention, whose attention looks back (docs/evals/synthetic.md).

Command:  python -m hope_jax.launch --config=configs/synthetic/compression_hope_attention.py
Hardware: 1 CPU core
Time:     1 minute beside other processes
Expect:   All answers right.
"""

from hope_jax.config.experiment import OrderedConfig
from hope_jax.config.presets import synthetic_hope_attention_config


def get_config() -> OrderedConfig:
    return synthetic_hope_attention_config("compression", seq_len=63, vocab_size=17)
