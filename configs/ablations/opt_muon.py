"""The pilot with its Muon hybrid, 5 000 steps: the other side of opt_adamw.

Command:  python -m hope_jax.launch --config=configs/ablations/opt_muon.py
Hardware: one RTX 6000 Ada (48 GB), as published
Time:     unrun here
Expect:   Published: cross-entropy 10.8-11.3.
"""

from hope_jax.config.experiment import OrderedConfig
from hope_jax.config.presets import pilot_config


def get_config() -> OrderedConfig:
    config = pilot_config()
    config.optim.name = "muon_hybrid"  # pinned: what this file is about
    config.train.steps = 5_000
    return config
