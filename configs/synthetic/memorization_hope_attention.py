"""Memorization (MAD) by HOPE-attention (docs/evals/synthetic.md).

Command:  python -m hope_jax.launch --config=configs/synthetic/memorization_hope_attention.py
Hardware: 1 CPU core
Time:     half a minute beside other processes
Expect:   All answers right.
"""

from hope_jax.config.experiment import OrderedConfig
from hope_jax.config.presets import synthetic_hope_attention_config


def get_config() -> OrderedConfig:
    return synthetic_hope_attention_config("memorization", seq_len=32, vocab_size=255)
