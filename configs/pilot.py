"""The pilot: 12 layers of width 512 on 3.03 billion tokens.

Command:  python -m hope_jax.launch --config=configs/pilot.py
Hardware: one RTX 6000 Ada (48 GB), as published
Time:     unrun here
Expect:   Published at step 230 000 (hope_hybrid): cross-entropy 7.7-8.1 on four corpora.
"""

from hope_jax.config.experiment import OrderedConfig
from hope_jax.config.presets import pilot_config


def get_config() -> OrderedConfig:
    return pilot_config()
