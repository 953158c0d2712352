"""The paper's Hope at 1.3B parameters: 17 layers of width 2048, 100 billion tokens.

Command:  python -m hope_jax.launch --config=configs/hope_1300m.py
Hardware: not run by us; docs/plan.md has what its step asks of two RTX 6000 Ada, H100s and a TPU v5e slice
Time:     unrun here
Expect:   Wiki perplexity 14.39, average accuracy 58.04 (arXiv 2512.24695), on other data than ours.
          Parameters: 1,278 million. Width and depth are ours: the paper's table names the size alone.
"""

from hope_jax.config.experiment import OrderedConfig
from hope_jax.config.presets import paper_size_config


def get_config() -> OrderedConfig:
    config = paper_size_config(dim=2048, heads=32, tokens=100e9)
    config.train.fsdp = True
    return config
