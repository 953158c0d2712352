"""Made-up items in the schemas of the real zero-shot data."""

import json
from pathlib import Path
from typing import Any

from hope_jax.evals.tasks.zeroshot_tasks import TASKS


def _science(question: str, right: int, name: str = "question") -> dict[str, Any]:
    letters = "ABCD"
    choices = {"text": ["rock", "the long rain", "sea", "a wolf"], "label": list(letters)}
    return {"id": question[:3], name: question, "choices": choices, "answerKey": letters[right]}


def _ending(ctx_a: str, ctx_b: str, label: str) -> dict[str, Any]:
    endings = ["sits down. [step] Rests.", "runs.", "sings [loudly] a  song.", "eats all the bread."]
    known = {
        "ind": 4,
        "source_id": "made~up",
        "split": "val",
        "split_type": "indomain",
        "ctx": f"{ctx_a} {ctx_b}",
    }
    return {
        "activity_label": "Cooking",
        "ctx_a": ctx_a,
        "ctx_b": ctx_b,
        "endings": endings,
        "label": label,
        **known,
    }


ITEMS: dict[str, list[dict[str, Any]]] = {
    "piqa": [
        {
            "goal": "dry a coat",
            "sol1": "Hang it in the sun.",
            "sol2": "Put it in the sea, then wait.",
            "label": 0,
        },
        {"goal": "open a jar", "sol1": "Sing to the jar until night.", "sol2": "Turn the lid.", "label": 1},
        {"goal": "cut bread", "sol1": "Use a knife.", "sol2": "Use a wheel.", "label": 0},
    ],
    "hellaswag": [
        _ending("A man [title] stands.", "he", "0"),
        _ending("A dog is in a field.", "the dog", "1"),
        _ending("She holds a cup.", "", "3"),
    ],
    "winogrande": [
        {
            "sentence": "The box fits the bag because _ is small.",
            "option1": "box",
            "option2": "bag",
            "answer": "1",
        },
        {
            "sentence": "Ann gave Eve bread since _ had none.",
            "option1": "Ann",
            "option2": "Eve",
            "answer": "2",
        },
        {"sentence": "_ was older than the king.", "option1": "The house", "option2": "Saul", "answer": "1"},
    ],
    "arc_easy": [
        _science("What falls from clouds?", 1),
        _science("What is salt?", 2),
        _science("Who howls?", 3),
    ],
    "arc_challenge": [_science("What is hard?", 0), _science("What is wet and deep?", 2)],
    "boolq": [
        {"question": "is salt white", "passage": "Salt is white.", "idx": 0, "label": 1},
        {"question": "is the sea dry", "passage": "The sea is wet.", "idx": 1, "label": 0},
        {"question": "do wolves howl", "passage": "Wolves howl at night.", "idx": 2, "label": 1},
    ],
    "social_iqa": [
        {
            "context": "Ann fell.",
            "question": "How is she?",
            "answerA": "sad",
            "answerB": "glad",
            "answerC": "very rich",
            "label": "1",
        },
        {
            "context": "Saul won.",
            "question": "And then?",
            "answerA": "wept",
            "answerB": "he sang",
            "answerC": "slept",
            "label": "2",
        },
    ],
    "commonsense_qa": [
        {
            "id": "x",
            "question": " Where is bread made? ",
            "question_concept": "bread",
            "answerKey": right,
            "choices": {"label": list("ABCDE"), "text": ["sea", "oven", "sky", "tree", "boat"]},
        }
        for right in "BEB"
    ],
    "openbookqa": [
        _science("Most of the earth is", 2, "question_stem"),
        _science("A stone is a", 0, "question_stem"),
    ],
    "lambada": [
        {"text": "He went to the sea and came back from the sea"},
        {"text": "She sang, and then sang a song"},
    ],
    "wikitext": [
        {"page": " = Salt = \n\n Salt is a white stone , and it is in the sea . \n"},
        {"page": " = Rain = \n\n The rain fell @,@ and fell . \n The king 's house stood . \n"},
    ],
}
"""By task; answers that the lengths of the choices alone do not tell."""


def write_files(folder: Path, *names: str) -> Path:
    """The files of the tasks, of all without names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or ITEMS:
        lines = [json.dumps(item) + "\n" for item in ITEMS[name]]
        (folder / TASKS[name].file).write_text("".join(lines), encoding="utf-8")
    return folder
