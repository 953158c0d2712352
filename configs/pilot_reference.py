"""The pilot as near to the published run as the options go: its style, signals and persistent batch memory.

Under its batch mean (norms near 1e-4) memory.surprise_threshold=0.02 never opens, as in the published run:
its memories are idle, and the alarm says so (docs/health.md).

Command:  python -m hope_jax.launch --config=configs/pilot_reference.py
Hardware: one RTX 6000 Ada (48 GB), as published
Time:     unrun here
Expect:   Cross-entropy near 8 at step 230 000 if the published numbers hold.
"""

from hope_jax.config.experiment import OrderedConfig
from hope_jax.config.presets import pilot_reference_config


def get_config() -> OrderedConfig:
    return pilot_reference_config()
