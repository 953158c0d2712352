"""The paper's Hope at 760M parameters: 17 layers of width 1536, 30 billion tokens.

Command:  python -m hope_jax.launch --config=configs/hope_760m.py
Hardware: not run by us; docs/plan.md has what its step asks of two RTX 6000 Ada, H100s and a TPU v5e slice
Time:     unrun here
Expect:   Wiki perplexity 18.68, average accuracy 52.28 (arXiv 2512.24695), on other data than ours.
          Parameters: 731 million. Width and depth are ours: the paper's table names the size alone.
"""

from hope_jax.config.experiment import OrderedConfig
from hope_jax.config.presets import paper_size_config


def get_config() -> OrderedConfig:
    return paper_size_config(dim=1536, heads=24, tokens=30e9)
