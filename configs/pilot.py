"""The pilot: 12 layers of width 512 on 3.03 billion tokens, in online chunks of 512.

N is chosen for speed: the plan's bound is 28,430 tokens/s, with N 32 (configs/pilot_n32.py) 5,042. On a small
model N 512 cost 0.23 nats more than N 32 (docs/memory.md, "The online chunk").

Command:  python -m hope_jax.launch --config=configs/pilot.py
Hardware: one RTX 6000 Ada (48 GB), as published
Time:     unrun here; 30 hours or more, by the bound of docs/plan.md
Expect:   Published at step 230 000 (hope_hybrid): cross-entropy 7.7-8.1 on four corpora.
"""

from hope_jax.config.experiment import OrderedConfig
from hope_jax.config.presets import pilot_config


def get_config() -> OrderedConfig:
    return pilot_config()
