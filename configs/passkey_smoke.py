"""For launch/passkey_smoke.sh: attention, then a CMS of one level, small enough to train from several seeds.

Command:  python -m hope_jax.launch --config=configs/passkey_smoke.py --config.train.seed=1
Hardware: 1 CPU core
Time:     12 s of CPU time, compilation included
Expect:   Held-out loss about 4.8 (unigram entropy 5.39); docs/evals/passkey_smoke.md has what it memorizes.
"""

from hope_jax.config import OrderedConfig
from hope_jax.presets import pilot_smoke_config, set_levels, set_size


def get_config() -> OrderedConfig:
    config = pilot_smoke_config()
    config.model.block_variant = "hope_attention"
    set_size(config, dim=64, num_layers=1, heads=2)
    set_levels(config, {"cms_mid": 16}, lr=0.1, optimizer="nl_l2_precond")
    config.eval.update({"every": 0, "batches": 2, "generate_tokens": 0})
    config.checkpoint.update({"every": 0, "keep_last": 1})
    config.log.tensorboard = False
    return config
