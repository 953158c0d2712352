"""Multi-query associative recall by HOPE-attention, whose attention does the recall: within a row its CMS is
an MLP (docs/evals/synthetic.md).

Command:  python -m hope_jax.launch --config=configs/synthetic/mqar_hope_attention.py
Hardware: 1 CPU core
Time:     MHA_TIME
Expect:   MHA_EXPECT
"""

from hope_jax.config import OrderedConfig
from hope_jax.presets import set_levels, synthetic_config


def get_config() -> OrderedConfig:
    config = synthetic_config("mqar", seq_len=32, vocab_size=17)
    config.model.update({"block_variant": "hope_attention", "local_conv_window": 4})
    set_levels(config, {"cms": 32}, lr=0.0, optimizer="sgd")
    config.data.task_options = {"vocab": 16, "pairs": 4, "length": 32}
    config.train.online_chunk_size = 32
    config.optim.lr = 4e-3
    return config
