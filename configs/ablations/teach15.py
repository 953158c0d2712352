"""The pilot with teach.scale 0.15, 2 000 steps.

Command:  python -m hope_jax.launch --config=configs/ablations/teach15.py
Hardware: one RTX 6000 Ada (48 GB), as published
Time:     unrun here
Expect:   Compare with the pilot's loss at the same step.
"""

from hope_jax.config.experiment import OrderedConfig
from hope_jax.config.presets import pilot_config


def get_config() -> OrderedConfig:
    config = pilot_config()
    config.teach.scale = 0.15
    config.train.steps = 2_000
    return config
