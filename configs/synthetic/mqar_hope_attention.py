"""Multi-query associative recall by HOPE-attention (docs/evals/synthetic.md).

Command:  python -m hope_jax.launch --config=configs/synthetic/mqar_hope_attention.py
Hardware: 1 CPU core
Time:     2 minutes beside other processes
Expect:   Seed 0 answers all questions about 4 pairs right, and 95 % of those about 8, which are new to it.
"""

from hope_jax.config.experiment import OrderedConfig
from hope_jax.config.presets import synthetic_hope_attention_config


def get_config() -> OrderedConfig:
    config = synthetic_hope_attention_config("mqar", seq_len=16, vocab_size=17)
    config.data.task_options = {"vocab": 16, "pairs": 4, "length": 16}
    config.data.batch_size = 64
    config.train.steps = 1500
    config.optim.lr = 2e-3
    return config
