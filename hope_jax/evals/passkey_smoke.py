"""Does a memory hold a pass key? Small models, several training seeds, and a gain that must be above zero.

python -m hope_jax.evals.passkey_smoke --checkpoints=PATH,PATH,... [--out=FILE] [--keys=N] [--filler=N]
    [--readings=N]

Each PATH is a run of its own `train.seed`; each seed has its own keys and fillers. A text with a pass key is
memorized, then read no more: scored is the key after the bare question, so only memories can know it. Other
arms: no memorization (`baseline`), and three controls of the same length: the same text with another key
(`other_key`), with the right key's digits in another order (`shuffled`), and unrelated text (`unrelated`).

Prints, and writes to FILE, the key's negative log-likelihood (NLL) in each arm and the gains, control minus
memorized, with 95 % intervals over the seeds' means; also how often the right key is likelier than the other
one (`choice`). Exit code 1 unless the interval of the gain over each control lies above zero.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from hope_jax import cli, compilation_cache
from hope_jax.core.errors import ConfigError, GuardError
from hope_jax.core.output import say
from hope_jax.core.paths import split_paths
from hope_jax.core.types import PyTree
from hope_jax.data.tokenizer import Tokenizer
from hope_jax.evals.reading.memorize import Memorizer, Rule, as_settings, unrelated
from hope_jax.evals.reading.scoring import Pair, score_pairs
from hope_jax.evals.reading.subject import Subject, open_subject
from hope_jax.evals.statistics import mean, within_one
from hope_jax.evals.suite.run import VERSION, progress
from hope_jax.release.model_card import RESULT

NAME = "passkey_smoke"
CONTROLS = ("other_key", "shuffled", "unrelated")
FEWEST_SEEDS = 3
QUESTION = " The pass key is"

_TEXTS = 10_000
"""Texts that a seed may ask for: more than it has keys."""

_CHECKPOINTS = cli.define_path(
    "checkpoints", "Runs that differ in train.seed, with commas between; at least 3."
)
_OUT = cli.define_path("out", "JSON file of the result.")
_KEYS = flags.DEFINE_integer("keys", 32, "Pass keys a seed.", lower_bound=2, upper_bound=_TEXTS)
_FILLER = flags.DEFINE_integer("filler", 128, "Tokens of text around a key.", lower_bound=2)
_READINGS = flags.DEFINE_integer("readings", 4, "Times that a text is read.", lower_bound=1)


class Prompt(NamedTuple):
    """right, other, shuffled: token ids of keys, equally many. filler: int32 [n] text around the key."""

    right: np.ndarray
    other: np.ndarray
    shuffled: np.ndarray
    filler: np.ndarray


def make_prompts(subject: Subject, count: int, filler: int, seed: int) -> list[Prompt]:
    """Keys of five digits, each with another one and with its digits in another order; all differ and have
    equally many tokens. For each `filler` tokens of held-out text."""
    rng, tokenizer, prompts = np.random.default_rng(seed), subject.trained.tokenizer, list[Prompt]()
    while len(prompts) < count:
        right, other = (str(rng.integers(10_000, 100_000)) for _ in range(2))
        names = right, other, "".join(rng.permutation(list(right)))
        keys = [tokenizer.encode(f" {name}") for name in names]
        if len(set(names)) == len(names) and len({len(key) for key in keys}) == 1:
            text = unrelated(subject, filler, _TEXTS * seed + len(prompts))
            prompts.append(Prompt(keys[0], keys[1], keys[2], text))
    return prompts


def with_key(tokenizer: Tokenizer, prompt: Prompt, key: np.ndarray) -> np.ndarray:
    """int32 [n]: the filler with a key told twice in its middle, in tokens that do not depend on the key."""
    half = len(prompt.filler) // 2
    parts = [tokenizer.encode(text) for text in (QUESTION, ". Remember it.", " is the pass key.")]
    told = (parts[0], key, parts[1], key, parts[2])
    return np.concatenate([prompt.filler[:half], *told, prompt.filler[half:]]).astype(np.int32)


def measure(subject: Subject, rule: Rule, prompts: Sequence[Prompt], seed: int) -> dict[str, np.ndarray]:
    """Of each arm, [prompts]: `nll/ARM`, float64, the right key's NLL in nats; `choice/ARM`, bool, whether it
    is likelier than the other key."""
    tokenizer, memorizer = subject.trained.tokenizer, Memorizer(subject, rule)
    keys = {"memorized": "right", "other_key": "other", "shuffled": "shuffled"}
    told = {arm: [with_key(tokenizer, p, getattr(p, key)) for p in prompts] for arm, key in keys.items()}
    lengths = map(len, told["memorized"])
    told["unrelated"] = [unrelated(subject, n, _TEXTS * seed + i) for i, n in enumerate(lengths)]
    question, found = tokenizer.encode(QUESTION), {}

    def scored(candidates: list[np.ndarray], fast: PyTree | None) -> np.ndarray:
        scores = score_pairs(subject, [Pair(question, key) for key in candidates], fast)
        return np.array([score.log_prob for score in scores])

    for arm in ("baseline", *told):
        fast = memorizer(told[arm]).fast if arm in told else None
        right, other = (scored([p[i] for p in prompts], fast) for i in (0, 1))
        found[f"nll/{arm}"] = -right
        found[f"choice/{arm}"] = right > other
    return found


def summarize(by_seed: dict[int, dict[str, np.ndarray]]) -> dict[str, Any]:
    """Means over the seeds' means with Student's intervals, and the seeds' means. A seed has its own weights,
    keys and fillers, so its mean is one independent observation. Where no key of any seed is chosen, or each,
    the interval is that of so many keys."""
    each: dict[str, dict[str, float]] = {}
    for seed, found in by_seed.items():
        each[str(seed)] = {name: float(values.mean()) for name, values in found.items()}
        for control in (*CONTROLS, "baseline"):
            gain = found[f"nll/{control}"] - found["nll/memorized"]
            each[str(seed)][f"gain/{control}"] = float(gain.mean())
    metrics = {}
    for name in next(iter(each.values())):
        estimate, chance = mean([means[name] for means in each.values()]), None
        if name.startswith("choice/"):
            keys = sum(len(found[name]) for found in by_seed.values())
            estimate, chance = within_one(estimate, keys), 0.5
        metrics[name] = estimate.as_json(chance)
    return {"metrics": metrics, "per_seed": each}


def failed(metrics: dict[str, Any]) -> list[str]:
    """The controls over which the interval of the gain does not lie above zero."""
    intervals = {control: metrics[f"gain/{control}"]["ci95"] for control in CONTROLS}
    return [control for control, interval in intervals.items() if not (interval and interval[0] > 0)]


def main(argv: list[str]) -> None:
    """Measures, prints and asserts."""
    cli.refuse_arguments(argv)
    out = cli.output_file("out", _OUT.value)
    subjects = open_seeds(split_paths("--checkpoints", _CHECKPOINTS.value) if _CHECKPOINTS.value else [])
    compilation_cache.use()
    started = time.monotonic()
    # The gate is open: a text that is to be memorized is written whole.
    rule = Rule(steps=_READINGS.value, surprise_threshold=0.0)
    by_seed = {}
    for seed, subject in subjects.items():
        prompts = make_prompts(subject, _KEYS.value, _FILLER.value, seed)
        by_seed[seed] = measure(subject, rule, prompts, seed)
        progress(NAME).info("%s: %d keys measured", subject.name, len(prompts))
    found = summarize(by_seed)
    missed = failed(found["metrics"])
    result = {
        "format": RESULT,
        "version": VERSION,
        "eval": NAME,
        "subjects": {str(seed): subject.about for seed, subject in subjects.items()},
        "settings": {"keys": _KEYS.value, "filler": _FILLER.value, "memorize": as_settings(rule)},
        **found,
        "asserted": [f"gain/{control}" for control in CONTROLS],
        "passed": not missed,
        "seconds": time.monotonic() - started,
    }
    if out:
        cli.write_json("out", out, result)
    say(table(found))
    if missed:
        raise GuardError(
            f"the gain over {' or '.join(missed)} is not above zero, after {_READINGS.value} readings of "
            f"each of {_KEYS.value} keys, over {len(subjects)} seeds"
        )


def open_seeds(paths: Sequence[Path]) -> dict[int, Subject]:
    """The runs by their `train.seed`. Raises: ConfigError for too few, or runs that do not differ in it."""
    if len(paths) < FEWEST_SEEDS:
        given = ",".join(map(str, paths))
        raise ConfigError(f"--checkpoints={given}: want at least {FEWEST_SEEDS} runs, of other train.seed")
    subjects: dict[int, Subject] = {}
    for path in paths:
        subject = open_subject(path)
        if (seed := subject.config.train.seed) in subjects:
            raise ConfigError(
                f"--checkpoints: {path} has train.seed={seed}, as another one; train with others"
            )
        if subject.shared_memory:
            raise ConfigError(f"--checkpoints: {path} has memory.scope=batch; want example, a memory a key")
        subjects[seed] = subject
    return subjects


def table(found: dict[str, Any]) -> str:
    """A line for each metric: value, interval, the seeds' means."""
    lines = []
    for name, metric in found["metrics"].items():
        low, high = metric["ci95"] or (np.nan, np.nan)
        means = [seed[name] for seed in found["per_seed"].values()]
        seeds = " ".join(f"{value:8.4f}" for value in means)
        lines.append(f"{name:18} {metric['value']:8.4f}  [{low:8.4f}, {high:8.4f}]   seeds {seeds}")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run_command(main)
