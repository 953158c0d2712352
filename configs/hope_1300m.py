"""The paper's Hope at 1.3B parameters: 17 layers of width 2048, 100 billion tokens.

Command:  python -m hope_jax.launch --config=configs/hope_1300m.py
Hardware: eight H100 (80 GB): 40.5 GiB of 76.0 on each, one row at a time, by the compiler alone (python -m
          hope_jax.plan --config=configs/hope_1300m.py --topology=h100:8 --nolargest_batch); not run by us
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
