"""The rehearsal of mid_stage2: 12 layers of width 512, 60 steps.

Command:  python -m hope_jax.launch --config=configs/mid_stage2_smoke.py
Hardware: one RTX 6000 Ada (48 GB), as published
Time:     unrun here
Expect:   No figure of ours.
"""

from hope_jax.config.experiment import OrderedConfig
from hope_jax.config.presets import published_base, set_levels


def get_config() -> OrderedConfig:
    config = published_base(titan_period=16, titan_lr=6e-4, optimizer="preconditioned")
    config.model.block_variant = "hope_hybrid"
    set_levels(config, {"cms_fast": 1, "cms_mid": 4, "cms_slow": 16}, lr=3e-4, optimizer="preconditioned")
    config.teach.update({"scale": 0.2, "clip": 2.0})
    config.train.steps = 60
    config.data.batch_size = 8
    config.optim.update({"name": "adamw", "lr": 1e-4})
    config.checkpoint.every = 0
    return config
