"""The pilot in online chunks of 32 tokens: what is written can be read 32 tokens later at most.

Command:  python -m hope_jax.launch --config=configs/pilot_n32.py
Hardware: one RTX 6000 Ada (48 GB), as published
Time:     unrun here; 167 hours or more, by the bound of docs/plan.md (5,042 tokens/s)
Expect:   No figure of ours. docs/memory.md compares N on a small model.
"""

from hope_jax.config.experiment import OrderedConfig
from hope_jax.config.presets import pilot_n32_config


def get_config() -> OrderedConfig:
    return pilot_n32_config()
