"""lm-eval's settings of answers: those of all its tasks, against its own reading of them, and odd values."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lm_eval.tasks
import pytest
import yaml
from lm_eval.models.utils import normalize_gen_kwargs

from hope_jax.core.errors import ConfigError
from hope_jax.evals.reading.lm_eval_model import MAX_GEN_TOKS, Wanted, wanted

FOLDER = Path(lm_eval.tasks.__file__).parent
DOCS = Path(__file__).parents[3] / "docs" / "evals" / "zeroshot.md"
IN_PYTHON = ({"until": ["\n"]}, {"until": ["\n"], "max_gen_toks": 48})
"""Of the tasks that lm-eval writes in Python: squadv2, scrolls, unitxt; fda, swde, squad_completion."""


class Tolerant(yaml.CSafeLoader):
    """Knows lm-eval's tags (`!function`), and makes nothing of them."""


Tolerant.add_multi_constructor("!", lambda loader, suffix, node: None)


def settings_in(value: Any) -> Iterator[Any]:
    """What stands under `generation_kwargs`, however deep."""
    if isinstance(value, dict):
        yield from (found for key, found in value.items() if key == "generation_kwargs")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from settings_in(inner)


def settings_of_all_tasks() -> list[dict[str, Any]]:
    """Those that differ, of the files of tasks, which have no common ending."""
    found = {json.dumps(settings): settings for settings in IN_PYTHON}
    for path in FOLDER.rglob("*"):
        if path.suffix in (".py", ".pyc", ".md") or not path.is_file():
            continue
        if b"generation_kwargs" in (content := path.read_bytes()):
            for settings in settings_in(yaml.load(content, Tolerant)):
                found[json.dumps(settings)] = settings or {}
    return list(found.values())


def test_each_setting_of_lm_evals_tasks_is_honoured_or_refused_by_name() -> None:
    everything, honoured, refused = settings_of_all_tasks(), 0, dict[str, int]()
    assert len(everything) > 100
    for settings in everything:
        read = normalize_gen_kwargs(settings, MAX_GEN_TOKS)
        draws = read["do_sample"] and read["temperature"] > 0
        beams = settings.get("num_beams", 1) != 1
        if draws or beams:
            key = "num_beams" if beams else "do_sample" if "do_sample" in settings else "temperature"
            with pytest.raises(ConfigError, match=rf"^generation_kwargs: {key}=.*; want "):
                wanted(settings)
            refused[key] = refused.get(key, 0) + 1
        else:
            assert wanted(settings) == Wanted(tuple(read["until"]), read["max_gen_toks"]), settings
            honoured += 1
    assert honoured > 100 and {"do_sample", "num_beams"} <= set(refused)


def test_the_documentation_lists_the_settings_of_all_tasks() -> None:
    text = DOCS.read_text()
    names = {key for settings in settings_of_all_tasks() for key in settings}
    assert {"until", "max_new_tokens", "num_beams"} <= names
    assert not [name for name in names if f"`{name}`" not in text]


@pytest.mark.parametrize(
    ("settings", "until", "tokens"),
    [
        (None, (), 256),
        ({}, (), 256),
        ({"until": None, "max_gen_toks": None, "temperature": None, "do_sample": None}, (), 256),
        ({"until": "\n"}, ("\n",), 256),
        ({"until": ""}, (), 256),
        ({"until": ["", "</s>", "a"], "max_gen_toks": 3}, ("</s>", "a"), 3),
        ({"until": ("Q:",), "max_gen_toks": "12"}, ("Q:",), 12),
        ({"max_gen_toks": 7.0}, (), 7),
        ({"max_completion_tokens": 4, "max_tokens": 5, "max_new_tokens": 6, "max_gen_toks": 7}, (), 7),
        ({"max_completion_tokens": 4, "max_tokens": 5, "max_new_tokens": 6, "max_gen_toks": None}, (), 6),
        ({"max_completion_tokens": 4, "max_tokens": 5}, (), 5),
        ({"max_completion_tokens": 4}, (), 4),
        ({"temperature": 1, "do_sample": False}, (), 256),
        ({"temperature": "0.7", "do_sample": "False", "top_p": 0.95, "top_k": 5, "seed": 1}, (), 256),
        ({"temperature": "0.0"}, (), 256),
        ({"temperature": 0.0, "do_sample": True}, (), 256),
        ({"num_beams": 1, "repetition_penalty": "1.0", "min_p": 0.1, "stop": None}, (), 256),
    ],
)
def test_settings_are_read_as_lm_evals_models_read_them(
    settings: dict[str, Any] | None, until: tuple[str, ...], tokens: int
) -> None:
    assert wanted(settings) == Wanted(until, tokens)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_sample": True}, "do_sample=true: answers are greedy; want do_sample=false"),
        ({"do_sample": "true", "temperature": 0.5}, "do_sample=true beside temperature=0.5: answers are gre"),
        ({"temperature": "0.2"}, "temperature=0.2: answers are greedy; want temperature=0"),
        ({"temperature": "warm"}, "temperature=warm: want a number"),
        ({"temperature": float("nan"), "do_sample": False}, "temperature=nan: want a number"),
        ({"temperature": -1.0}, "temperature=-1.0: want a number of at least 0"),
        ({"do_sample": "maybe"}, "do_sample=maybe: want true or false"),
        ({"max_gen_toks": 0}, "max_gen_toks=0: want a whole number of tokens, at least 1"),
        ({"max_new_tokens": -3}, "max_new_tokens=-3: want a whole number of tokens, at least 1"),
        ({"max_tokens": 2.5}, "max_tokens=2.5: want a whole number of tokens, at least 1"),
        ({"max_completion_tokens": True}, "max_completion_tokens=True: want a number"),
        ({"max_gen_toks": "many"}, "max_gen_toks=many: want a number"),
        ({"until": 3}, "until=3: want a text, or a list of texts"),
        ({"until": ["a", 3]}, r"until=\['a', 3\]: want a text, or a list of texts"),
        ({"num_beams": 4}, "num_beams=4: that is not done here; want num_beams=1, or none"),
        ({"repetition_penalty": 1.2}, "repetition_penalty=1.2: .* want repetition_penalty=1"),
        ({"min_new_tokens": 5}, "min_new_tokens=5: .* want min_new_tokens=0"),
        ({"stop": ["a"]}, r"stop=\['a'\]: no such setting is known here; give until"),
        ({"max_length": 64}, "max_length=64: no such setting is known here; give max_gen_toks"),
        ({"guidance": 2}, "guidance=2: no such setting is known here; leave it out"),
    ],
)
def test_what_a_greedy_answer_is_not_is_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^generation_kwargs: {message}"):
        wanted(settings)
