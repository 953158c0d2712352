"""Fuzzy in-context recall (MAD) by HOPE-attention (docs/evals/synthetic.md).

Command:  python -m hope_jax.launch --config=configs/synthetic/fuzzy_recall_hope_attention.py
Hardware: 1 CPU core
Time:     5 minutes beside other processes
Expect:   98 % of the answers right, 93 % of the strings.
"""

from hope_jax.config.experiment import OrderedConfig
from hope_jax.config.presets import synthetic_hope_attention_config


def get_config() -> OrderedConfig:
    config = synthetic_hope_attention_config("fuzzy_recall", seq_len=128, vocab_size=14)
    config.train.steps = 600
    return config
