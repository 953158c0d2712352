"""The paper's Hope at 340M parameters: 17 layers of width 1024, 15 billion tokens (as in the Titans paper).

Command:  python -m hope_jax.launch --config=configs/hope_340m.py
Hardware: not run by us; docs/plan.md has what its step asks of two RTX 6000 Ada, H100s and a TPU v5e slice
Time:     unrun here
Expect:   NeurIPS short version: Wiki perplexity 26.05, average accuracy 46.90.
          Parameters: 336 million. Width and depth are ours: the paper's table names the size alone.
"""

from hope_jax.config.experiment import OrderedConfig
from hope_jax.config.presets import paper_size_config


def get_config() -> OrderedConfig:
    return paper_size_config(dim=1024, heads=16, tokens=15e9)
