"""Multi-query associative recall by HOPE-attention (docs/evals/synthetic.md).

Command:  python -m hope_jax.launch --config=configs/synthetic/mqar_hope_attention.py
Hardware: 1 CPU core
Time:     1 minute beside other processes
Expect:   61 % of the answers right (chance 15 %), 10 % of the strings: not solved.
"""

from hope_jax.config import OrderedConfig
from hope_jax.presets import synthetic_hope_attention_config


def get_config() -> OrderedConfig:
    config = synthetic_hope_attention_config("mqar", seq_len=32, vocab_size=17)
    config.data.task_options = {"vocab": 16, "pairs": 4, "length": 32}
    config.train.steps = 1200
    return config
