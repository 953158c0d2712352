"""Measure inner learning rates: how often does a write lower the loss of what it was written from?

python -m hope_jax.calibrate --checkpoint=PATH [--config=FILE] [--rates=0.01,0.1,1] [--config.KEY=VALUE ...]

PATH is a workdir, one checkpoints/<step>, or a release bundle; without --config its own configuration holds.
For each level (CMS, TITAN) alone, the others written with rate 0, and for all together, streams held-out text
and prints the share of written chunks whose loss falls when they are read again (of a level that spans
chunks, its period's last chunk), the mean change per token then, and what the writes change in the loss of
the text as it is first read (held-out: negative is better). A level of period C gets
rate * min(1, 128 / C). Before that, quantiles of the mean surprise of each level's periods over all layers,
read without writes, and the share at or above `memory.surprise_threshold`. Mode `online`, variants with
attention and memories.
"""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import flags

from hope_jax import cli
from hope_jax.config import assemble
from hope_jax.config.check import validate
from hope_jax.config.chunks import levels_of
from hope_jax.config.experiment import ExperimentConfig
from hope_jax.core.errors import ConfigError
from hope_jax.core.output import say
from hope_jax.core.types import NO_TARGET, Batch, FrozenMapping, PyTree
from hope_jax.data.inputs import open_inputs
from hope_jax.learning.reread import reread
from hope_jax.models.lm import HopeModel
from hope_jax.storage.stored import load_checkpoint
from hope_jax.storage.trained import load_tokenizer

_CHECKPOINT = cli.define_checkpoint()
_RATES = flags.DEFINE_list("rates", ["0.003", "0.01", "0.03", "0.1", "0.3", "1"], "Rates to try.")
cli.define_config()

TAUGHT = ("hope_attention", "hope_hybrid", "titan")

LONGEST_FULL_RATE = 128
"""Levels of longer periods gather more gradient, and get proportionally smaller rates."""


QUANTILES = (0.1, 0.5, 0.9)


class Outcome(NamedTuple):
    """What writes at some rates did; losses in nats per token.

    falls: share of written chunks whose loss is lower when read again. reread: their mean change, per
    token of the chunk. writes: their number. streamed: loss of the text as it is first read. surprise: of
    each token, [L, rows, tokens], NaN where it does not count.
    """

    falls: float
    reread: float
    writes: int
    streamed: float
    surprise: np.ndarray


def measure(
    config: ExperimentConfig, params: PyTree, batches: list[Batch], rates: dict[str, float]
) -> Outcome:
    """Streams the batches with the given inner rates, by level name; levels without one are not written."""
    spec = assemble.model_spec(config)
    levels = {name: replace(level, lr=rates.get(name, 0.0)) for name, level in spec.cms.levels.items()}
    titan = replace(spec.titan, level=replace(spec.titan.level, lr=rates.get("titan", 0.0)))
    model = HopeModel(replace(spec, cms=replace(spec.cms, levels=FrozenMapping(levels)), titan=titan))
    run = jax.jit(lambda params, batch: reread(model, assemble.online_rule(config), params, batch))
    falls, writes, change, streamed, tokens = 0, 0, 0.0, 0.0, 0
    surprise = []
    for batch in batches:
        before, after, by_level, each = jax.tree.map(np.asarray, run(params, batch))
        chunks, layers, size, length = each.shape
        surprise.append(each.transpose(1, 2, 0, 3).reshape(layers, size, chunks * length))
        counted = np.any([by_level[name] for name in rates] or [np.zeros_like(before, bool)], axis=0)
        falls += int((after < before)[counted].sum())
        writes += int(counted.sum())
        change += float((after - before)[counted].sum())
        streamed += float(before.sum())
        tokens += int((np.asarray(batch.targets) != NO_TARGET).sum())
    falling, change = falls / max(writes, 1), change / (max(writes, 1) * spec.chunk_size)
    return Outcome(falling, change, writes, streamed / tokens, np.concatenate(surprise, 1))


def show_surprise(surprise: np.ndarray, periods: dict[str, int], threshold: float | None) -> None:
    """Prints a line a level. surprise: [L, rows, tokens]."""
    say(f"mean surprise of periods (memory.surprise_threshold={threshold})")
    say(f"{'levels':12} " + " ".join(f"{quantile:>8.0%}" for quantile in QUANTILES) + f" {'open':>7}")
    for name, period in periods.items():
        whole = surprise.shape[-1] // period * period
        cut = surprise[..., :whole].reshape(-1, period)
        means = np.nanmean(cut[~np.isnan(cut).all(-1)], axis=-1)
        if means.size:
            values = " ".join(f"{value:8.3g}" for value in np.quantile(means, QUANTILES))
            share = 1.0 if threshold is None else float((means >= threshold).mean())
            say(f"{name:12} {values} {share:7.1%}")


def main(argv: list[str]) -> None:
    """Prints the table."""
    if argv or not _CHECKPOINT.value:
        raise ConfigError("want --checkpoint=WORKDIR and no other arguments (--help)")
    try:
        candidates = [float(rate) for rate in _RATES.value]
    except ValueError as error:
        raise ConfigError(f"--rates: want numbers, got {','.join(_RATES.value)}") from error
    loaded = load_checkpoint(Path(_CHECKPOINT.value), ("params",))
    config = cli.load_config(loaded.config)
    validate(config)
    if config.train.algorithm_mode != "online" or config.model.block_variant not in TAUGHT:
        wanted = f"train.algorithm_mode=online and model.block_variant one of {', '.join(TAUGHT)}"
        raise ConfigError(f"calibrate: want {wanted}")
    if not levels_of(config):
        raise ConfigError(
            "calibrate: cms.levels is empty, so the model has no memory whose rate could be measured; "
            "give the checkpoint of a model with one"
        )
    params = loaded.state["params"]
    tokenizer = load_tokenizer(loaded.path, loaded.meta["tokenizer_digest"], config.data)
    batches = open_inputs(config, tokenizer).eval_batches()
    spec = assemble.model_spec(config)
    by_memory = HopeModel(spec).memories()
    taught = {name for memory in by_memory.values() for name in memory.periods()}
    levels = {"titan": spec.titan.level, **spec.cms.levels}
    periods = {name: level.update_period for name, level in levels.items() if name in taught}
    without = measure(config, params, batches, {})
    idle = without.streamed
    say(f"held-out loss without writes: {idle:.5f} nats a token")
    show_surprise(without.surprise, periods, config.memory.surprise_threshold)
    say(f"{'levels':12} {'rate':>8} {'falls':>7} {'re-read':>9} {'writes':>7} {'held-out':>9}")
    for name in (*periods, "all"):
        for rate in candidates:
            chosen = periods if name == "all" else {name: periods[name]}
            rates = {k: rate * min(1.0, LONGEST_FULL_RATE / c) for k, c in chosen.items()}
            got = measure(config, params, batches, rates)
            row = f"{got.falls:7.1%} {got.reread:+9.5f} {got.writes:7d} {got.streamed - idle:+9.5f}"
            say(f"{name:12} {rate:8g} {row}")


if __name__ == "__main__":
    cli.run_command(main)
