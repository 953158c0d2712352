"""Teach-scale sweep on mid_stage2: scale 0.20, clip 8, 40 steps.

Command:  python -m hope_jax.launch --config=configs/sweeps/mid_stage2_teach20_40.py
Hardware: one RTX 6000 Ada (48 GB), as published
Time:     unrun here
Expect:   No figure of ours.
"""

from hope_jax.config.experiment import OrderedConfig
from hope_jax.config.presets import mid_stage2_config, set_teaching


def get_config() -> OrderedConfig:
    config = mid_stage2_config()
    set_teaching(config, scale=0.20, clip=8.0, schedule=(20, 80, 40))
    config.data.batch_size = 4
    config.train.steps = 40
    return config
