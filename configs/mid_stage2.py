"""The stage-2 run: 18 layers of width 768, 100 steps.

Command:  python -m hope_jax.launch --config=configs/mid_stage2.py
Hardware: two RTX 6000 Ada (48 GB), as published: 41.8 GiB of 45.6 on each at commit d0b90dd, by the compiler
          (python -m hope_jax.plan --config=configs/mid_stage2.py --topology=rtx6000ada:2 --nolargest_batch)
Time:     unrun here
Expect:   No figure of ours.
"""

from hope_jax.config.experiment import OrderedConfig
from hope_jax.config.presets import mid_stage2_config


def get_config() -> OrderedConfig:
    return mid_stage2_config()
