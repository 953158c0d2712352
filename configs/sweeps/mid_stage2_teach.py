"""Teach-scale sweep on mid_stage2. Published: scales 0.05, 0.10 (clip 5), 0.20 (clip 8); 40 and 80 steps.

Command:  python -m hope_jax.launch --config=configs/sweeps/mid_stage2_teach.py:scale=0.2,clip=8,steps=80
          (without values: python -m hope_jax.launch --config=configs/sweeps/mid_stage2_teach.py)
Hardware: one RTX 6000 Ada (48 GB), as published
Time:     unrun here
Expect:   No figure of ours.
"""

from hope_jax.config.experiment import OrderedConfig
from hope_jax.config.presets import mid_stage2_config


def get_config(scale: float = 0.1, clip: float = 5.0, steps: int = 40) -> OrderedConfig:
    config = mid_stage2_config()
    config.teach.update({"scale": scale, "clip": clip})
    config.data.batch_size = 4
    config.train.steps = steps
    return config
