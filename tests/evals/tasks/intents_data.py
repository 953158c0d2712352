"""Made-up classification data in the schemas of the real files."""

import csv
import json
from pathlib import Path

WORDS = ("red", "blue", "warm", "cold", "round", "flat")


def write_clinc(folder: Path, train: int = 4, test: int = 3) -> Path:
    """3 domains of 2 intents; utterances tell their class by a word."""
    intents = [f"is_{word}" for word in WORDS]

    def split(name: str, count: int) -> list[list[str]]:
        return [[f"{name} {i} it is {w}", f"is_{w}"] for w in WORDS for i in range(count)]

    data = {
        "train": split("so", train),
        "val": split("well", 1),
        "test": [*split("now", test), ["so 0 it is red", "is_red"]],
        "oos_test": [["what", "oos"]],
    }
    (folder / "clinc_data_full.json").write_text(json.dumps(data))
    domains = {name: intents[2 * i : 2 * i + 2] for i, name in enumerate(("a", "b", "c"))}
    (folder / "clinc_domains.json").write_text(json.dumps(domains))
    return folder


def write_banking(folder: Path, classes: int = 23) -> Path:
    return _write(folder, "banking77", ("text", "category"), [(f"class_{i:02}",) for i in range(classes)])


def write_dbpedia(folder: Path, classes: int = 20) -> Path:
    labels = [("Agent", f"SportsTeam{chr(97 + i)}", f"Club{i}") for i in range(classes)]
    return _write(folder, "DBPEDIA", ("text", "l1", "l2", "l3"), labels)


def _write(folder: Path, name: str, fields: tuple[str, ...], labels: list[tuple[str, ...]]) -> Path:
    for split, count in (("train", 3), ("test", 2)):
        with (folder / f"{name}_{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(fields)
            for label in labels:
                writer.writerows((f'{split} "{i}", of {label[-1]}', *label) for i in range(count))
    return folder
