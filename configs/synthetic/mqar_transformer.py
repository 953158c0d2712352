"""Multi-query associative recall by a transformer, which learns part of it (docs/evals/synthetic.md).

Command:  python -m hope_jax.launch --config=configs/synthetic/mqar_transformer.py
Hardware: 1 CPU core
Time:     10 minutes beside a dozen other processes
Expect:   About 60 % of the questions right (chance 15 %).
"""

from hope_jax.config.experiment import OrderedConfig
from hope_jax.config.presets import synthetic_config


def get_config() -> OrderedConfig:
    config = synthetic_config("mqar", seq_len=32, vocab_size=17)
    config.data.task_options = {"vocab": 16, "pairs": 4, "length": 32}
    config.optim.lr = 2e-3
    return config
