"""For launch/passkey_smoke.sh: attention, then a CMS of one level, small enough to train from several seeds.

Command:  python -m hope_jax.launch --config=configs/passkey_smoke.py --config.train.seed=1
Hardware: 1 CPU core
Time:     12 s of CPU time, compilation included
Expect:   Held-out loss about 4.8 (unigram entropy 5.39); docs/evals/passkey_smoke.md has what it memorizes.
          memory.surprise_threshold=0.02 lets all periods pass (mean surprise 0.026 at step 90) and masks a
          quarter of their tokens.
"""

from hope_jax.config.experiment import OrderedConfig
from hope_jax.config.presets import (
    PUBLISHED_THRESHOLD,
    pilot_smoke_config,
    set_levels,
    set_size,
)


def get_config() -> OrderedConfig:
    config = pilot_smoke_config()
    config.model.block_variant = "hope_attention"
    set_size(config, dim=64, num_layers=1, heads=2)
    set_levels(config, {"cms_mid": 16}, lr=0.1, optimizer="nl_l2_precond")
    config.teach.scale = 0.10
    config.memory.surprise_threshold = PUBLISHED_THRESHOLD
    config.data.update({"seq_len": 256, "batch_size": 8})
    config.optim.update({"lr": 0.03, "adam_lr": 4e-3})
    config.eval.update({"every": 0, "batches": 2, "generate_tokens": 0})
    config.checkpoint.update({"every": 0, "keep_last": 1})
    config.log.tensorboard = False
    return config
