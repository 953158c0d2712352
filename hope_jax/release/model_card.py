"""The model card of a release bundle: what its own files say, and what they do not, in words."""

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from hope_jax.config.chunks import cms_levels_of, has_memories
from hope_jax.config.values import resolve
from hope_jax.core import files
from hope_jax.data.corpus import EMBEDDED
from hope_jax.report.page import Table, markdown
from hope_jax.storage import arrays, digests, seal
from hope_jax.storage.stored import LoadedCheckpoint

_LOSSES = {
    "loss": "training loss of that step's batch",
    "eval_loss": "held-out loss, memories written",
    "eval_loss_no_writes": "held-out loss without writes",
    "perplexity": "held-out perplexity",
    "unigram_entropy": "entropy of the held-out tokens' own frequencies",
}
"""Key of a row of metrics.jsonl -> what it is; all but the perplexity in nats per token."""

RESULT = "hope_jax evaluation"
"""What results of `hope_jax.evals.suite` call their format."""

_FIGURES = 24
"""Figures of each result that the card shows."""

_ARCHITECTURE = (
    "model.block_variant", "model.style", "model.dim", "model.num_layers", "model.heads", "model.vocab_size",
    "train.algorithm_mode", "train.compute_dtype", "memory.scope", "memory.lifetime", "data.seq_len",
)  # fmt: skip


def render(root: Path, loaded: LoadedCheckpoint, baselines: Sequence[str]) -> str:
    """MODEL_CARD.md of a bundle whose other files are in `root`. loaded: its checkpoint, with `params`.
    baselines: names of their folders."""
    config, step, arrays_of = loaded.config, loaded.step, arrays.named(loaded.state["params"])
    counts: dict[str, int] = {}
    for name, leaf in arrays_of.items():
        part = ".".join(name.split(".")[: 2 if name.startswith("blocks.") else 1])
        counts[f"`{part}`"] = counts.get(f"`{part}`", 0) + int(leaf.size)
    digest = arrays.digest(arrays.named({"params": loaded.state["params"]}))
    sections = {
        "Architecture": _values(_architecture(config)),
        "Parameters": _values({**counts, "all": sum(counts.values())}),
        "Training": _values(_training(root, loaded)),
        "Losses": _losses(root, step),
        "Data": _data(config["data"], loaded.meta.get("sources", ())),
        "Baselines": _baselines(root, baselines),
        "Evaluations": _evaluations(root, digest),
        "Limits": _limits(config),
        "How to load it": _LOADING,
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    return f"# {config['model']['block_variant']}, step {step}\n\n{_HEAD}\n\n{body}\n"


_HEAD = (
    "A language model of [Nested Learning / HOPE](https://arxiv.org/abs/2512.24695), trained with hope_jax. "
    "All numbers are from the files of this folder; `metadata.json` and `MANIFEST.txt` hold their digests."
)
_LOADING = """With hope_jax installed, from this folder:

```bash
python -m hope_jax.verify .
python -m hope_jax.generate --checkpoint=. --prompt="In the beginning"
```

The parameters alone, as numpy arrays (the file's header says what each is):

```python
from safetensors.numpy import load_file

params = load_file("weights.safetensors")
```"""


def _values(values: Mapping[str, Any]) -> str:
    return markdown(Table(("what", "value"), [(key, _shown(value)) for key, value in values.items()]))


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and value >= 1000 else f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else f"`{value}`"


def _architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    pairs = ((key, *key.split(".")) for key in _ARCHITECTURE)
    out = {f"`{key}`": config[group][name] for key, group, name in pairs}
    for key, level in cms_levels_of(resolve(config)):
        out[f"tokens between writes of CMS level `{key.split('.')[-1]}`"] = level.update_period
    return out


def _training(root: Path, loaded: LoadedCheckpoint) -> dict[str, Any]:
    meta = seal.read_meta(root / files.CHECKPOINT_DIR, loaded.step)
    progress, config = loaded.meta["progress"], loaded.config
    return {
        "steps": loaded.step,
        "supervised tokens trained on": progress.get("tokens", "unknown"),
        "seconds of training": progress.get("train_seconds", "unknown"),
        "rows a step": config["data"]["batch_size"],
        "outer optimizer": config["optim"]["name"],
        "its peak rate": config["optim"]["lr"],
        "seed": config["train"]["seed"],
        "git revision of the code": meta.get("git_revision") or "unknown",
        **{f"version of {name}": version for name, version in meta["versions"].items()},
        "digest of the checkpoint": meta["checkpoint_digest"],
    }


def _losses(root: Path, step: int) -> str:
    """The last logged value of each up to the checkpoint's step, with its own step."""
    rows = [row for row in files.read_rows(root / files.METRICS_FILE) if row["step"] <= step]
    lines = []
    for key, what in _LOSSES.items():
        found = next((row for row in reversed(rows) if row.get(key) is not None), None)
        if found:
            lines.append((f"{what} (`{key}`)", _shown(float(found[key])), str(found["step"])))
    if not lines:
        return "The run left no log of them in this folder."
    return f"Cross-entropies in nats per token.\n\n{markdown(Table(('what', 'value', 'at step'), lines))}"


def _data(data: Mapping[str, Any], sources: Sequence[Mapping[str, Any]]) -> str:
    """sources: as of `Inputs.about`; none: texts."""
    tokenizer = f"Tokenizer: `tokenizer.model` (`data.tokenizer` was `{data['tokenizer']}`)."
    if sources:
        head = ("source", "weight", "training tokens", "texts", "licence", "digest of its shards' digests")
        rows = [
            (f"`{s['name']}`", f"{s['weight']:g}", f"{s['train_tokens']:,}", s["origin"], s["licence"])
            + (f"`{s['shards_sha256']}`",)
            for s in sources
        ]
        said = "Token shards, in these proportions. This folder does not hold them."
        return f"{said}\n\n{markdown(Table(head, rows))}\n\n{tokenizer}"
    if data["source"] != EMBEDDED:
        return (
            f"The text files of the folder that `data.source` named, `{data['source']}`. This folder holds "
            f"neither them nor a list of them. {tokenizer}"
        )
    provenance = (resources.files("hope_jax.data") / "assets" / "PROVENANCE.md").read_text(encoding="utf-8")
    table = provenance.split("\n\n## ")[0].split("\n\n")[-1]
    said = "The corpus that comes with hope_jax, but for the documents that are held out for evaluation."
    return f"{said}\n\n{table}\n\n{tokenizer}"


def _baselines(root: Path, names: Iterable[str]) -> str:
    lines = []
    for name in names:
        folder = root / files.BASELINE_DIR / name
        config = yaml.safe_load(digests.read_text(folder / files.CONFIG_FILE))
        step = next(int(path.name) for path in (folder / files.CHECKPOINT_DIR).iterdir() if path.is_dir())
        title = f"### `{files.BASELINE_DIR}/{name}`: {config['model']['block_variant']}, step {step}"
        lines.append(f"{title}\n\n{_losses(folder, step)}")
    if not lines:
        return "None is in this folder."
    return "\n\n".join(["Each is a bundle's run of its own: `--checkpoint` takes its folder.", *lines])


def _evaluations(root: Path, params_digest: str) -> str:
    """params_digest: of the bundle's checkpoint, to tell its results from those of others."""
    paths = {path.relative_to(root).as_posix(): path for path in (root / files.EVAL_DIR).rglob("*.json")}
    if not paths:
        return "None are in this folder: beyond the losses above, nothing is known of what the model can do."
    parts = [
        "Results, as the evaluations wrote them:\n\n" + "\n".join(f"- `{name}`" for name in sorted(paths))
    ]
    results = {name: json.loads(digests.read_text(path)) for name, path in sorted(paths.items())}
    shown = {
        name: result
        for name, result in results.items()
        if isinstance(result, dict) and result.get("format") == RESULT
    }
    if shown:
        parts.append("Brackets hold 95 % intervals. LEAK: the model had read the right answer.")
    return "\n\n".join([*parts, *(_result(*each, params_digest) for each in shown.items())])


def _result(name: str, result: Mapping[str, Any], params_digest: str) -> str:
    """The first figures of an evaluation."""
    own = result["subject"]["arrays_digest"] == params_digest
    whose = "" if own else f" of `{result['subject']['checkpoint']}`, not of this model"
    rows = []
    for key, found in list(result["metrics"].items())[:_FIGURES]:
        interval = " [{:.4g}, {:.4g}]".format(*found["ci95"]) if found.get("ci95") else ""
        value = "–" if found["value"] is None else f"{found['value']:.4g}"
        chance = "" if found.get("chance") is None else f"{found['chance']:.4g}"
        leak = " LEAK" if found.get("leak") else ""
        rows.append((f"`{key}`", f"{value}{interval}{leak}", str(found.get("n", "")), chance))
    more = len(result["metrics"]) - _FIGURES
    rest = f"\n\n{more} more are in `{name}`." if more > 0 else ""
    table = markdown(Table(("figure", "value", "items", "chance"), rows))
    return f"### {result['eval']}{whose}\n\n{table}{rest}"


def _limits(config: Mapping[str, Any]) -> str:
    lines = [
        "A model of text alone, trained to predict the next token: it follows no instructions, and nothing "
        "filters what it says.",
        "It has seen the data above and no other, and repeats their errors and their prejudices.",
        f"Contexts in training had {config['data']['seq_len']:,} tokens; longer ones were never trained.",
        "The same machine and software give the same logits to the last bit, others up to rounding.",
    ]
    if has_memories(resolve(config)):
        lines.append(
            "Its memories learn from what it reads, so what it says depends on all that came before in a "
            "stream. A saved memory belongs to these parameters and can give away what was read."
        )
    return "\n".join(f"- {line}" for line in lines)
