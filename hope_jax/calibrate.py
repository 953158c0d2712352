"""Measure inner learning rates: how often does a write lower the loss of what it was written from?

python -m hope_jax.calibrate --config=FILE --checkpoint=WORKDIR [--rates=0.01,0.1,1] [--config.KEY=VALUE ...]

For each CMS level alone (the others written with rate 0), and for all together, streams the held-out text
and prints the share of written chunks whose loss falls when they are read again, and the mean change per
token. A level of period C gets rate * min(1, 128 / C). The rule for choosing: the largest rate at which the
loss falls in at least 95 % of writes (SPEC §2.5). CMS variants in mode `online` only.
"""

from pathlib import Path

import jax
import numpy as np
from absl import flags

from hope_jax import cli
from hope_jax.config import ExperimentConfig
from hope_jax.data import corpus, pipeline
from hope_jax.data.tokenizer import Tokenizer
from hope_jax.errors import ConfigError
from hope_jax.learning.reread import reread
from hope_jax.models.lm import HopeModel
from hope_jax.training import assemble
from hope_jax.training.checkpoint import load_checkpoint
from hope_jax.types import Batch, PyTree

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Workdir, or one checkpoints/<step>.")
_RATES = flags.DEFINE_list("rates", ["0.003", "0.01", "0.03", "0.1", "0.3", "1"], "Rates to try.")
cli.define_config()

LONGEST_FULL_RATE = 128
"""Levels of longer periods gather more gradient, and get proportionally smaller rates."""


def measure(
    config: ExperimentConfig, params: PyTree, batches: list[Batch], rates: dict[str, float]
) -> tuple[float, float, int]:
    """Share of written chunks whose loss falls, mean change in nats per supervised token, and their number.

    rates: level name -> inner learning rate; levels without one are not written.
    """
    spec = assemble.model_spec(config)
    levels = tuple(level._replace(lr=rates.get(level.name, 0.0)) for level in spec.cms_levels)
    model = HopeModel(spec._replace(cms_levels=levels))
    run = jax.jit(lambda params, batch: reread(model, assemble.online_rule(config), params, batch))
    falls, change, tokens, writes = 0, 0.0, 0, 0
    for batch in batches:
        before, after, by_level = jax.tree.map(np.asarray, run(params, batch))
        counted = np.any([by_level[name] for name in rates], axis=0)
        falls += int((after < before)[counted].sum())
        writes += int(counted.sum())
        change += float((after - before)[counted].sum())
        tokens += int(counted.sum()) * spec.chunk_size
    return falls / max(writes, 1), change / max(tokens, 1), writes


def main(argv: list[str]) -> None:
    """Prints the table."""
    if argv or not _CHECKPOINT.value:
        raise ConfigError("want --checkpoint=WORKDIR and no other arguments (--help)")
    config = cli.load_config()
    if config.train.algorithm_mode != "online" or config.model.block_variant != "hope_attention":
        raise ConfigError(
            "calibrate: want train.algorithm_mode=online and model.block_variant=hope_attention"
        )
    params = load_checkpoint(Path(_CHECKPOINT.value), ("params",)).state["params"]
    tokenizer = Tokenizer.load(config.data.tokenizer)
    _, held_out = corpus.split_documents(corpus.load_documents(config.data.source))
    batches = pipeline.make_eval_batches(
        documents=held_out,
        tokenizer=tokenizer,
        seq_len=config.data.seq_len,
        batch_size=config.data.batch_size,
        max_batches=config.eval.batches,
    )
    periods = {name: level.update_period for name, level in config.model.cms_levels.items()}
    print(f"{'levels':12} {'rate':>8} {'falls':>7} {'nats/token':>11} {'writes':>7}")
    for name in (*periods, "all"):
        for rate in map(float, _RATES.value):
            chosen = periods if name == "all" else {name: periods[name]}
            rates = {k: rate * min(1.0, LONGEST_FULL_RATE / c) for k, c in chosen.items()}
            falls, change, writes = measure(config, params, batches, rates)
            print(f"{name:12} {rate:8g} {falls:7.1%} {change:11.5f} {writes:7d}", flush=True)


if __name__ == "__main__":
    cli.run_command(main)
