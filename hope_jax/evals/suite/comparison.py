"""A checkpoint against a baseline: paired tests over the items that both have answered."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hope_jax.evals import statistics
from hope_jax.evals.suite.plots import split
from hope_jax.evals.suite.run import MEMORIZED

_OF_MANY = ("perplexity", "word_perplexity", "byte_perplexity")
"""Metrics that an item alone does not have; lm-eval's records hold log-likelihoods under these names."""

Scores = dict[str, dict[str, float | bool]]


def compare(checkpoint: Mapping[str, Any], baseline: Mapping[str, Any]) -> dict[str, Any]:
    """Paired tests of two results of one evaluation, as docs/evals/README.md describes them, a JSON value; or
    `problem`: why there are none. Records with the same arm and key are the same item under the same seed."""
    if "items" not in checkpoint or "items" not in baseline:
        return {"problem": "no records of items, so no paired test; run it with --baseline"}
    first, second = scores(checkpoint), scores(baseline)
    pooled = _pooled(checkpoint, first)
    leak = checkpoint.get("leak") or baseline.get("leak")
    paired: dict[str, dict[str, Any]] = {}
    only_one = 0
    for name, a in first.items():
        b = second.get(name, {})
        keys = [key for key in a if key in b]
        only_one += len(a) + len(b) - 2 * len(keys)
        if keys:
            paired[name] = {
                **statistics.paired([a[key] for key in keys], [b[key] for key in keys]).as_json(),
                **({"leak": True} if leak and name.endswith(f"/{MEMORIZED}") else {}),
                **({"pooled": True} if name in pooled else {}),
            }
    if not paired:
        return {"problem": "its records hold no score of single items that both have"}
    for family in (pooled, {*paired} - pooled):
        own = [each for name, each in paired.items() if name in family]
        corrected = iter(holm([each["p_value"] for each in own if each["p_value"] is not None]))
        for each in own:
            each["p_holm"] = None if each["p_value"] is None else next(corrected)
    a, b = checkpoint["settings"], baseline["settings"]
    differ = sorted(key for key in {*a, *b} - {"checkpoint"} if a.get(key) != b.get(key))
    return {"paired": paired, "only_one": only_one, "settings_differ": differ}


def scores(outcome: Mapping[str, Any]) -> Scores:
    """Group "task/score/arm" -> item's key -> value, of the scores of a result's records. Scores are numbers
    and truth values that have the name of a metric. A record counts in its `tasks`; if it names none, in the
    part of its key before the last "/". Of several records with one arm and key (of several checkpoints) the
    last one counts."""
    found: Scores = {}
    for key, value, groups in _scored(outcome):
        for group in groups:
            found.setdefault(group, {})[key] = value
    return dict(sorted(found.items()))


def _scored(outcome: Mapping[str, Any]) -> Iterator[tuple[str, float | bool, list[str]]]:
    """Of each score of each record: the item's key, the value, and the groups that it counts in."""
    names = {split(key)[1] for key in outcome["metrics"]} - {*_OF_MANY}
    for record in outcome["items"]:
        key, arm = str(record["key"]), record.get("arm", "")
        tasks = record.get("tasks") or [key.rpartition("/")[0] or outcome["eval"]]
        for name in names & {*record}:
            if isinstance(record[name], bool | int | float):
                yield key, record[name], ["/".join(p for p in (task, name, arm) if p) for task in tasks]


def _pooled(outcome: Mapping[str, Any], found: Scores) -> set[str]:
    """The groups that hold what other groups hold singly: of those that a record counts in, all but the
    smallest, of equal ones the one that it names last."""
    pooled: set[str] = set()
    for _, _, groups in _scored(outcome):
        if len(groups) > 1:
            pooled |= {*groups} - {min(reversed(groups), key=lambda group: len(found[group]))}
    return pooled


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values: the chance of any false alarm among all tests is below each."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
