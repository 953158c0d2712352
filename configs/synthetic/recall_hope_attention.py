"""In-context recall (MAD) by HOPE-attention: its attention, with a convolution before it, does the recall;
within a row the CMS is an MLP (docs/evals/synthetic.md).

Command:  python -m hope_jax.launch --config=configs/synthetic/recall_hope_attention.py
Hardware: 1 CPU core
Time:     1 minute
Expect:   All answers right.
"""

from hope_jax.config import OrderedConfig
from hope_jax.presets import set_levels, synthetic_config


def get_config() -> OrderedConfig:
    config = synthetic_config("in_context_recall", seq_len=64, vocab_size=16)
    config.data.task_options = {"length": 64}
    config.model.update({"block_variant": "hope_attention", "local_conv_window": 4})
    set_levels(config, {"cms": 64}, lr=0.0, optimizer="sgd")
    config.train.update({"steps": 300, "online_chunk_size": 64})
    config.optim.lr = 4e-3
    return config
