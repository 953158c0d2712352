"""In-context recall (MAD) by HOPE-attention: its attention, with a convolution before it, does the recall;
within a row the CMS is an MLP (docs/evals/synthetic.md).

Command:  python -m hope_jax.launch --config=configs/synthetic/recall_hope_attention.py
Hardware: 1 CPU core
Time:     1 minute
Expect:   All answers right.
"""

from hope_jax.config.experiment import OrderedConfig
from hope_jax.config.presets import synthetic_hope_attention_config


def get_config() -> OrderedConfig:
    config = synthetic_hope_attention_config("in_context_recall", seq_len=64, vocab_size=16)
    config.data.task_options = {"length": 64}
    return config
