"""The model card of a release bundle: what its own files say, and what they do not, in words."""

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from hope_jax.config.chunks import cms_levels_of, has_memories
from hope_jax.config.values import resolve
from hope_jax.core.files import (
    BASELINE_DIR,
    CHECKPOINT_DIR,
    CONFIG_FILE,
    EVAL_DIR,
    METRICS_FILE,
    read_rows,
)
from hope_jax.core.types import PyTree
from hope_jax.data.corpus import EMBEDDED
from hope_jax.storage import arrays, seal
from hope_jax.storage import digests as manifest
from hope_jax.storage.stored import LoadedCheckpoint

_LOSSES = {
    "loss": "training loss of that step's batch",
    "eval_loss": "held-out loss, memories written",
    "eval_loss_no_writes": "held-out loss without writes",
    "perplexity": "held-out perplexity",
    "unigram_entropy": "entropy of the held-out tokens' own frequencies",
}
"""Key of a row of metrics.jsonl -> what it is; all but the perplexity in nats per token."""

_RESULT, _FIGURES = "hope_jax evaluation", 24
"""What results of `hope_jax.evals.suite` call their format; figures of each that the card shows."""

_ARCHITECTURE = (
    "model.block_variant", "model.style", "model.dim", "model.num_layers", "model.heads", "model.vocab_size",
    "train.algorithm_mode", "train.compute_dtype", "memory.scope", "memory.lifetime", "data.seq_len",
)  # fmt: skip


def render(root: Path, loaded: LoadedCheckpoint, baselines: Sequence[str]) -> str:
    """MODEL_CARD.md of a bundle whose other files are in `root`.

    loaded: its checkpoint, with `params`. baselines: names of their folders.
    """
    config, step = loaded.config, loaded.step
    sections = {
        "Architecture": _table(_architecture(config)),
        "Parameters": _table(_parameters(loaded.state["params"])),
        "Training": _table(_training(root, loaded)),
        "Losses": _losses(root, step),
        "Data": _data(config["data"], loaded.meta.get("sources", ())),
        "Baselines": _baselines(root, baselines),
        "Evaluations": _evaluations(root, arrays.digest(arrays.named({"params": loaded.state["params"]}))),
        "Limits": _limits(config),
        "How to load it": _loading(),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    return f"# {config['model']['block_variant']}, step {step}\n\n{_HEAD}\n\n{body}\n"


_HEAD = (
    "A language model of [Nested Learning / HOPE](https://arxiv.org/abs/2512.24695), trained with hope_jax. "
    "All numbers are from the files of this folder; `metadata.json` and `MANIFEST.txt` hold their digests."
)


def _table(values: Mapping[str, Any]) -> str:
    rows = "\n".join(f"| {key} | {_shown(value)} |" for key, value in values.items())
    return f"| what | value |\n|---|---|\n{rows}"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and value >= 1000 else f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else f"`{value}`"


def _architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    out = {}
    for key in _ARCHITECTURE:
        group, name = key.split(".")
        out[f"`{key}`"] = config[group][name]
    for key, level in cms_levels_of(resolve(config)):
        out[f"tokens between writes of CMS level `{key.split('.')[-1]}`"] = level.update_period
    return out


def _parameters(params: PyTree) -> dict[str, int]:
    """Counts by the part of the model that an array belongs to, and in all."""
    counts: dict[str, int] = {}
    for name, leaf in arrays.named(params).items():
        part = ".".join(name.split(".")[: 2 if name.startswith("blocks.") else 1])
        counts[f"`{part}`"] = counts.get(f"`{part}`", 0) + int(leaf.size)
    return {**counts, "all": sum(counts.values())}


def _training(root: Path, loaded: LoadedCheckpoint) -> dict[str, Any]:
    meta, progress, config = (
        seal.read_meta(root / CHECKPOINT_DIR, loaded.step),
        loaded.meta["progress"],
        loaded.config,
    )
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
    rows = [row for row in read_rows(root / METRICS_FILE) if row["step"] <= step]
    lines = []
    for key, what in _LOSSES.items():
        found = next((row for row in reversed(rows) if row.get(key) is not None), None)
        if found:
            lines.append(f"| {what} (`{key}`) | {_shown(float(found[key]))} | {found['step']} |")
    if not lines:
        return "The run left no log of them in this folder."
    head = "Cross-entropies in nats per token.\n\n| what | value | at step |\n|---|---|---|\n"
    return head + "\n".join(lines)


def _data(data: Mapping[str, Any], sources: Sequence[Mapping[str, Any]]) -> str:
    """sources: as of `Inputs.about`; none: texts."""
    tokenizer = f"Tokenizer: `tokenizer.model` (`data.tokenizer` was `{data['tokenizer']}`)."
    if sources:
        rows = [
            f"| `{s['name']}` | {s['weight']:g} | {s['train_tokens']:,} | {s['origin']} | {s['licence']} | "
            f"`{s['shards_sha256']}` |"
            for s in sources
        ]
        head = "| source | weight | training tokens | texts | licence | digest of its shards' digests |"
        return (
            "Token shards, in these proportions. This folder does not hold them.\n\n"
            + "\n".join([head, "|---|---|---|---|---|---|", *rows])
            + f"\n\n{tokenizer}"
        )
    if data["source"] != EMBEDDED:
        return (
            f"The text files of the folder that `data.source` named, `{data['source']}`. This folder holds "
            f"neither them nor a list of them. {tokenizer}"
        )
    provenance = (resources.files("hope_jax.data") / "assets" / "PROVENANCE.md").read_text(encoding="utf-8")
    table = provenance.split("\n\n## ")[0].split("\n\n")[-1]
    head = "The corpus that comes with hope_jax, but for the documents that are held out for evaluation."
    return f"{head}\n\n{table}\n\n{tokenizer}"


def _baselines(root: Path, names: Sequence[str]) -> str:
    if not names:
        return "None is in this folder."
    lines = ["Each is a bundle's run of its own: `--checkpoint` takes its folder."]
    for name in names:
        folder = root / BASELINE_DIR / name
        config = yaml.safe_load(manifest.read_text(folder / CONFIG_FILE))
        step = next(int(path.name) for path in (folder / CHECKPOINT_DIR).iterdir() if path.is_dir())
        title = f"### `{BASELINE_DIR}/{name}`: {config['model']['block_variant']}, step {step}"
        lines.append(f"{title}\n\n{_losses(folder, step)}")
    return "\n\n".join(lines)


def _evaluations(root: Path, params_digest: str) -> str:
    """params_digest: of the bundle's checkpoint, to tell its results from those of others."""
    files = sorted((root / EVAL_DIR).rglob("*.json"))
    if not files:
        return "None are in this folder: beyond the losses above, nothing is known of what the model can do."
    names = [path.relative_to(root).as_posix() for path in files]
    parts = ["Results, as the evaluations wrote them:\n\n" + "\n".join(f"- `{name}`" for name in names)]
    for name, path in zip(names, files, strict=True):
        result = json.loads(manifest.read_text(path))
        if isinstance(result, dict) and result.get("format") == _RESULT:
            parts.append(_result(name, result, params_digest))
    if len(parts) > 1:
        parts.insert(1, "Brackets hold 95 % intervals. LEAK: the model had read the right answer.")
    return "\n\n".join(parts)


def _result(name: str, result: Mapping[str, Any], params_digest: str) -> str:
    """The first figures of an evaluation."""
    own = result["subject"]["arrays_digest"] == params_digest
    title = f"### {result['eval']}" + (
        "" if own else f" of `{result['subject']['checkpoint']}`, not of this model"
    )
    lines = ["| figure | value | items | chance |", "|---|---|---|---|"]
    for key, found in list(result["metrics"].items())[:_FIGURES]:
        interval = " [{:.4g}, {:.4g}]".format(*found["ci95"]) if found.get("ci95") else ""
        leak = " LEAK" if found.get("leak") else ""
        chance = "" if found.get("chance") is None else f"{found['chance']:.4g}"
        value = "–" if found["value"] is None else f"{found['value']:.4g}"
        lines.append(f"| `{key}` | {value}{interval}{leak} | {found.get('n', '')} | {chance} |")
    more = len(result["metrics"]) - _FIGURES
    rest = f"\n\n{more} more are in `{name}`." if more > 0 else ""
    return f"{title}\n\n" + "\n".join(lines) + rest


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


def _loading() -> str:
    return (
        "With hope_jax installed, from this folder:\n\n```bash\npython -m hope_jax.verify .\n"
        'python -m hope_jax.generate --checkpoint=. --prompt="In the beginning"\n```\n\n'
        "The parameters alone, as numpy arrays (the file's header says what each is):\n\n```python\n"
        'from safetensors.numpy import load_file\n\nparams = load_file("weights.safetensors")\n```'
    )
