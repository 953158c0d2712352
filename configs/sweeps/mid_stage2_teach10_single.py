"""mid_stage2 on a single device: teach scale 0.10 with warm-up and decay, lr 1.5e-5, 220 steps.

Command:  python -m hope_jax.launch --config=configs/sweeps/mid_stage2_teach10_single.py
Hardware: one RTX 6000 Ada (48 GB), as published
Time:     unrun here
Expect:   No figure of ours.
"""

from hope_jax.config.experiment import OrderedConfig
from hope_jax.config.presets import mid_stage2_config, set_schedule


def get_config() -> OrderedConfig:
    config = mid_stage2_config()
    config.teach.scale = 0.10
    set_schedule(config, 60, 140, 80)
    config.data.batch_size = 4
    config.optim.lr = 1.5e-5
    config.train.steps = 220
    return config
