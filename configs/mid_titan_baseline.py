"""The TITAN baseline at middle size; the short run has --config.train.steps=220.

Command:  python -m hope_jax.launch --config=configs/mid_titan_baseline.py
Hardware: one RTX 6000 Ada (48 GB), as published
Time:     unrun here
Expect:   Published at 25 000 steps: cross-entropy 7.9-8.4 on four corpora.
"""

from hope_jax.config.experiment import OrderedConfig
from hope_jax.config.presets import mid_titan_baseline_config


def get_config() -> OrderedConfig:
    return mid_titan_baseline_config()
