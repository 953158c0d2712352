"""The pilot without the SelfModifier: a TITAN write is a step along the teach signal.

Command:  python -m hope_jax.launch --config=configs/ablations/selfmod_off.py
Hardware: one RTX 6000 Ada (48 GB), as published
Time:     unrun here
Expect:   Published at 5 000 steps (as self_mod_lr 0): cross-entropy 45.
"""

from hope_jax.config.experiment import OrderedConfig
from hope_jax.config.presets import pilot_config


def get_config() -> OrderedConfig:
    config = pilot_config()
    config.titan.self_modifier.enabled = False
    config.train.steps = 5_000
    return config
