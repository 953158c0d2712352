"""Multi-query associative recall by Gated DeltaNet, the linear recurrent baseline (docs/evals/synthetic.md).

Command:  python -m hope_jax.launch --config=configs/synthetic/mqar_gated_deltanet.py
Hardware: 1 CPU core
Time:     4 minutes beside other processes
Expect:   Eval loss below 0.001 (seed 0: 0.0004): nearly all questions right, where the transformer has 60 %.
"""

from hope_jax.config.experiment import OrderedConfig
from hope_jax.config.presets import synthetic_config


def get_config() -> OrderedConfig:
    config = synthetic_config("mqar", seq_len=32, vocab_size=17)
    config.data.task_options = {"vocab": 16, "pairs": 4, "length": 32}
    config.model.block_variant = "gated_deltanet"
    config.optim.lr = 2e-3
    return config
