"""A manifest is checked before anything is read, and what is wrong is named."""

import copy
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import yaml

from hope_jax.core.errors import ConfigError, DataError
from hope_jax.data.building import filters
from hope_jax.data.building import tasks as plan
from hope_jax.data.building.recipe import Mixture, load_manifest

ROOT = Path(__file__).parents[2]
GOOD: dict[str, Any] = {
    "out": "shards",
    "tokenizer": "embedded",
    "sources": {
        "a": {"weight": 0.75, "reader": "text", "paths": "a"},
        "b": {"weight": 0.25, "reader": "huggingface", "dataset": "owner/name", "limit": 10},
    },
}


def load(folder: Path, raw: Any, **environment: str) -> Mixture:
    path = folder / "m.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return load_manifest(path, environment)


def changed(key: str, value: Any) -> dict[str, Any]:
    raw = copy.deepcopy(GOOD)
    *parents, last = key.split(".")
    inner = raw
    for name in parents:
        inner = inner[name]
    inner[last] = value
    return raw


def test_paths_are_relative_to_the_manifest(tmp_path: Path) -> None:
    mixture = load(tmp_path, GOOD)
    assert mixture.out == tmp_path / "shards" and mixture.sources[0].paths == (tmp_path / "a",)
    assert mixture.dedup.exact and mixture.dedup.minhash is None


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("sources.a.weight", 0.7, r"weights add up to 0\.95; want 1"),
        ("sources.a.weight", -0.75, r"sources\.a\.weight=-0\.75: want a number, above 0"),
        ("sources.a.weight", 0, r"sources\.a\.weight=0: want a number, above 0"),
        ("sources.a.weight", True, r"sources\.a\.weight=True"),
        ("sources.a.weight", float("nan"), r"sources\.a\.weight=nan"),
        ("sources.a.wieght", 1, r"sources\.a: unknown key 'wieght'; want .*; did you mean weight\?"),
        ("sources.a.reader", "csv", r"sources\.a\.reader='csv': want one of jsonl, parquet"),
        ("sources.a.paths", None, r"sources\.a: the reader text wants `paths`"),
        ("sources.b.paths", "x", r"sources\.b: the reader huggingface wants `dataset` and no `paths`"),
        ("sources.a.filters", {"gofer": {}}, r"sources\.a\.filters: unknown key 'gofer'; want c4, fineweb"),
        ("sources.a.filters", ["c4"], r"sources\.a\.filters=\['c4'\]: want a mapping"),
        ("sources.a.filters", {"c4": 3}, r"filters\.c4=3: want a mapping"),
        ("sources.b.limit", "many", r"sources\.b\.limit='many': want a whole number"),
        ("sources.b.config", 20231101, r"sources\.b\.config=20231101: want a text, in quotes"),
        ("sources.a.shards", 0, r"sources\.a\.shards=0"),
        ("sources.A-1", {}, r"sources\.A-1: want a name of small letters"),
        ("sources", {}, r"sources=\{\}: want a mapping"),
        ("tokeniser", "x", "unknown key 'tokeniser'; want .*tokenizer"),
        ("tokenizer", None, "'tokenizer' is missing"),
        ("holdout", 1, "holdout=1: want a number, above 0 and below 1"),
        ("row_tokens", 2**16, "row_tokens=65536: want a multiple"),
        ("document_multiple", 48, "row_tokens=2048: want a multiple of document_multiple=48"),
        ("dedup", {"minhash": {"buckets": 3}}, r"dedup\.minhash: unknown key 'buckets'"),
        ("dedup", {"minhash": {"num_buckets": 10**9}}, r"num_buckets=1000000000: want .* at most 1000"),
        ("dedup", {"minhash": {"hashes_per_bucket": 10**9}}, r"hashes_per_bucket=1000000000: want"),
        ("sources.a.glob", "/x/*", r"sources\.a\.glob='/x/\*': .*want a pattern relative"),
        ("sources.a.glob", "", r"sources\.a\.glob='': .*want a pattern relative"),
        ("sources.a.paths", "a\0b", r"paths='a\\x00b': a NUL"),
        ("sources.a.paths", ["x", " "], r"sources\.a\.paths=.*none of them empty"),
        ("sources.b.dataset", "", "the reader huggingface wants `dataset`"),
        ("sources.b.data_files", "", r"sources\.b\.data_files='': the text is empty"),
        ("out", " ", "out=' ': the text is empty"),
        ("out", "a\0b", r"out='a\\x00b': a NUL"),
        (f"sources.{'x' * 300}", {}, "want a name of at most 64 characters"),
        ("dedup", {"exact": "yes"}, r"dedup\.exact='yes': want true or false"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, key: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, changed(key, value))


@pytest.mark.parametrize("value", ["2020-13-45", "!!int x", "!!bool x", "!!timestamp x", "!!float x"])
def test_values_that_are_not_of_their_kind(tmp_path: Path, value: str) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(f"out: {value}")
    with pytest.raises(ConfigError, match="m.yaml: not YAML"):
        load_manifest(path)
    path.write_text("out: &a [*a]")
    with pytest.raises(ConfigError, match=r"m.yaml: an anchor \(&\) holds itself"):
        load_manifest(path)


@pytest.mark.parametrize("text", ["a: [", "[]", "3", "", "out: x\nsources: {a: {weight: 1}, a: {weight: 1}}"])
def test_a_file_that_is_no_manifest(tmp_path: Path, text: str) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="m.yaml: (not YAML|want a mapping)"):
        load_manifest(path)
    with pytest.raises(ConfigError, match="none.yaml: No such file"):
        load_manifest(tmp_path / "none.yaml")


def test_variables_come_from_the_environment_or_their_default(tmp_path: Path) -> None:
    raw = changed("sources.b.limit", "${B_LIMIT:-1_000}")
    assert load(tmp_path, raw).sources[1].limit == 1000
    assert load(tmp_path, raw, B_LIMIT="7").sources[1].limit == 7
    assert load(tmp_path, raw, B_LIMIT="").sources[1].limit == 1000
    with pytest.raises(ConfigError, match="limit='a: b'"):  # a value stays a value, whatever is in it
        load(tmp_path, raw, B_LIMIT="a: b")
    for wrong in (
        "null",
        "~",
        " ",
        "010",
        "1:30",
        "2020-01-01",
        "1_0",
        "0x10",
        "-1",
        "1.5",
        "true",
        "9" * 30,
    ):
        with pytest.raises(ConfigError, match=rf"sources\.b\.limit='?{wrong}'?: want a whole number"):
            load(tmp_path, raw, B_LIMIT=wrong)
    assert load(tmp_path, changed("sources.b.limit", "${B_LIMIT:-null}")).sources[1].limit is None
    assert load(tmp_path, changed("sources.a.weight", "${W:-1}"), W="0.75").sources[0].weight == 0.75
    with pytest.raises(ConfigError, match="variable HERE is not set"):
        load(tmp_path, changed("out", "${HERE}/x"))
    here = load(tmp_path, changed("sources.a.paths", "${PYTHON_STDLIB}/os.py")).sources[0].paths
    assert here == (Path(sysconfig.get_path("stdlib")).resolve() / "os.py",)


def test_files_are_found_before_work_starts(tmp_path: Path) -> None:
    mixture = load(tmp_path, GOOD)
    with pytest.raises(DataError, match=r"sources\.a\.paths: .*/a: no such file or folder"):
        plan.make_plan(mixture)
    (tmp_path / "a").mkdir()
    (tmp_path / "a/one.csv").write_text("x")
    with pytest.raises(DataError, match=r"no file fits \*\*/\*\.txt or .*set `glob`"):
        plan.make_plan(mixture)
    (tmp_path / "a/two.txt").write_text("x")
    assert [f.name for f in plan.make_plan(mixture).sources[0].files] == ["two.txt"]
    with pytest.raises(ConfigError, match=r"sources\.a\.shards=2: there are 1 files"):
        plan.make_plan(load(tmp_path, changed("sources.a.shards", 2)))
    with pytest.raises(ConfigError, match=r"m\.yaml: tokenizer='.*none\.model': no such file; want 'embe"):
        plan.make_plan(load(tmp_path, changed("tokenizer", "none.model")))


def test_stages_are_told_apart_by_all_they_depend_on(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/two.txt").write_text("x")

    def keys(raw: dict[str, Any]) -> tuple[str, ...]:
        made = plan.make_plan(load(tmp_path, raw))
        return tuple(folder.name for folder in (made.sources[0].folder, made.dedup, made.shards))

    def same(raw: dict[str, Any]) -> list[bool]:
        return [a == b for a, b in zip(first, keys(raw), strict=True)]

    first = keys(GOOD)
    assert same({**GOOD, "statistics": "s.json"}) == [True, True, True]
    assert same(changed("sources.a.licence", "x")) == [True, True, True]
    assert same({**GOOD, "salt": "x"}) == [True, True, False]
    assert same({**GOOD, "row_tokens": 64}) == [True, True, False]
    assert same({**GOOD, "dedup": {"exact": False}}) == [True, False, False]
    assert same(changed("sources.b.limit", 11)) == [True, False, False]
    assert same(changed("sources.a.min_characters", 3)) == [False, False, False]
    assert keys(changed("sources.a.filters", {"c4": {}, "fineweb": {}})) != keys(
        changed("sources.a.filters", {"fineweb": {}, "c4": {}})
    )
    (tmp_path / "a/two.txt").write_text("y")
    assert same(GOOD) == [False, False, False]


@pytest.mark.parametrize(("total", "tasks"), [(10, 3), (2, 3), (0, 2), (9, 3)])
def test_a_limit_is_shared_out(total: int, tasks: int) -> None:
    shares = [plan.task_share(total, rank, tasks) for rank in range(tasks)]
    assert sum(shares) == total and max(shares) - min(shares) <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"gopher_quality": {"min_words": 3}},
            r"gopher_quality: unknown key 'min_words'; want .*min_doc_words",
        ),
        (
            {"gopher_quality": {"min_doc_words": "x"}},
            r"gopher_quality\.min_doc_words='x': want a whole number",
        ),
        ({"c4": {"remove_citations": 3}}, r"c4\.remove_citations=3: want true or false"),
        ({"language": {}}, r"language\.languages=None: want a list of codes"),
        ({"language": {"languages": ["en"], "model": "x"}}, r"language\.model='x': want shipped"),
        ({"language": {"languages": ["en"], "model": "ft176"}}, r"language\.model='ft176': Please install"),
        (
            {"language": {"languages": ["en"], "threshold": 1.5}},
            r"language\.threshold=1\.5: want a number, at least 0 and at most 1",
        ),
        ({"language": {"languages": ["en"], "threshold": float("nan")}}, r"language\.threshold=nan: want"),
        (
            {"language": {"languages": ["en"], "characters": 0}},
            r"language\.characters=0: want a whole number, at least 1",
        ),
        ({"gopher_repetition": {"top_n_grams": [1]}}, r"gopher_repetition\.top_n_grams=\[1\]: want"),
        ({"gopher_repetition": {"top_n_grams": [[2, "x"]]}}, r"top_n_grams=\[\[2, 'x'\]\]: want"),
        ({"gopher_repetition": {"dup_n_grams": 3}}, r"dup_n_grams=3: want"),
        ({"gopher_quality": {"stop_words": [1]}}, r"stop_words=\[1\]: want"),
        ({"gopher_quality": {"min_doc_words": 1.5}}, r"min_doc_words=1\.5: want a whole number"),
        ({"language": {"languages": ["en"], "k": 1}}, r"language: unknown key 'k'"),
    ],
)
def test_options_of_filters_are_checked(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    source = load(tmp_path, changed("sources.a.filters", options)).sources[0]
    with pytest.raises(ConfigError, match=message):
        filters.make_filters(source, filters.RegexWords())


def test_the_mixtures_of_the_repository_have_the_agreed_sources() -> None:
    weights = [0.4, 0.2, 0.15, 0.15, 0.1]
    sample = load_manifest(ROOT / "data/mixtures/sample.yaml", {})
    full = load_manifest(ROOT / "data/mixtures/full.yaml", {"TOKENIZER": "embedded"})
    assert [s.name for s in sample.sources] == ["speeches", "jargon", "novel", "scripture", "code"]
    assert [s.name for s in full.sources] == ["refinedweb", "wikipedia", "c4", "redpajama", "code"]
    assert [s.weight for s in sample.sources] == [s.weight for s in full.sources] == weights
    assert all(s.licence and s.origin for s in (*sample.sources, *full.sources))
    for source in (*sample.sources, *full.sources):
        filters.make_filters(source, filters.RegexWords())
    limits = {"RW": 1, "WIKI": 2, "C4": 3, "RPJ": 4, "CODE": 5}
    given = {f"{name}_LIMIT": str(n) for name, n in limits.items()} | {
        "WIKI_SPLIT": "x",
        "FALLBACK_SPLIT": "y",
    }
    changed_full = load_manifest(ROOT / "data/mixtures/full.yaml", {"TOKENIZER": "embedded", **given})
    assert [s.limit for s in changed_full.sources] == [1, 2, 3, 4, 5]
    assert changed_full.sources[1].split == "x" and {s.fallback_split for s in changed_full.sources} == {"y"}
