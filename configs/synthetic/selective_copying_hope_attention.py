"""Selective copying (MAD), of half its symbols, by HOPE-attention (docs/evals/synthetic.md).

Command:  python -m hope_jax.launch --config=configs/synthetic/selective_copying_hope_attention.py
Hardware: 1 CPU core
Time:     2 minutes beside other processes
Expect:   97 % of the answers right, 81 % of the strings.
"""

from hope_jax.config.experiment import OrderedConfig
from hope_jax.config.presets import synthetic_hope_attention_config


def get_config() -> OrderedConfig:
    config = synthetic_hope_attention_config("selective_copying", seq_len=64, vocab_size=16)
    config.data.task_options = {"length": 64, "copied": 8}
    config.train.steps = 900
    return config
