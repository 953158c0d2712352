"""lm-eval's tasks of the zero-shot evaluation, on local files or as lm-eval downloads them.

Prompts, choices and metrics are those of the task definitions that lm-eval ships; with local files only the
place of the data is another. lm_eval (extra `eval`) is imported when tasks are loaded.
"""

import contextlib
import hashlib
import importlib.util
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hope_jax.core.errors import ConfigError, DataError, instead
from hope_jax.data import text_files


class TaskSource(NamedTuple):
    """harness: the task's name in lm-eval. folder: of its definition there. file: JSON lines in the schema of
    the real data. fields: that each line must have."""

    harness: str
    folder: str
    file: str
    fields: tuple[str, ...]

    @property
    def split(self) -> str:
        """The split that is scored: "validation" or "test"."""
        return self.file.removesuffix(".jsonl").rpartition("_")[2]


_TABLE = """
piqa piqa piqa piqa_validation goal sol1 sol2 label
hellaswag hellaswag hellaswag hellaswag_validation activity_label ctx_a ctx_b endings label
winogrande winogrande winogrande winogrande_validation sentence option1 option2 answer
arc_easy arc_easy arc arc_easy_test question choices answerKey
arc_challenge arc_challenge arc arc_challenge_test question choices answerKey
boolq boolq super_glue/boolq boolq_validation question passage label
social_iqa social_iqa siqa social_iqa_validation context question answerA answerB answerC label
commonsense_qa commonsense_qa commonsense_qa csqa_validation question choices answerKey
openbookqa openbookqa openbookqa openbookqa_test question_stem choices answerKey
lambada lambada_openai lambada lambada_test text
wikitext wikitext wikitext wikitext_test page
"""
"""A line a task: our name, `TaskSource` (the file without its ending)."""

TASKS: Mapping[str, TaskSource] = {
    name: TaskSource(harness, folder, f"{file}.jsonl", tuple(fields))
    for name, harness, folder, file, *fields in (line.split() for line in _TABLE.split("\n") if line)
}


class Selection(NamedTuple):
    """tasks: names of `TASKS` that will run. files: of each, where they are local. skipped: why others are
    not run, a line each. digests: SHA-256 of each file."""

    tasks: tuple[str, ...]
    files: Mapping[str, Path]
    skipped: tuple[str, ...]
    digests: Mapping[str, str]


def require_lm_eval() -> None:
    """Raises: ConfigError if lm_eval is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError(
            "the zero-shot evaluation needs lm_eval, which is not installed; "
            "install the extra: pip install 'hope_jax[eval]'"
        )


def select(wanted: Sequence[str], folder: Path | None) -> Selection:
    """The tasks to run and their checked files. wanted: names; (): all. folder: of local files; a task
    without one is left out, with a line in `skipped`. None: lm-eval downloads. Raises: ConfigError for an
    unknown name, a folder that is not there or has no file of any task, or a task that was asked for by name
    and has no file; DataError for a file that is not in the task's schema."""
    for name in wanted:
        if name not in TASKS:
            raise ConfigError(f"zeroshot_tasks={name}: no such task; {instead(name, TASKS, 'want some of')}")
    names = tuple(name for name in TASKS if not wanted or name in wanted)
    if folder is None:
        return Selection(names, {}, (), {})
    if not folder.is_dir():
        raise ConfigError(
            f"zeroshot_data={folder}: no such folder; want one that holds {TASKS['piqa'].file} and so on"
        )
    missing = tuple(
        f"{name} is skipped: put its data, lines of JSON with {', '.join(TASKS[name].fields)}, "
        f"into {folder / TASKS[name].file}"
        for name in names
        if not (folder / TASKS[name].file).is_file()
    )
    if missing and (wanted or len(missing) == len(names)):
        raise ConfigError(f"zeroshot_data={folder}: {'; '.join(missing)}")
    files = {name: path for name in names if (path := folder / TASKS[name].file).is_file()}
    for name, path in files.items():
        _lines(path, TASKS[name].fields)
    digests = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    return Selection(tuple(files), files, missing, digests)


@contextlib.contextmanager
def load(selection: Selection) -> Iterator[dict[str, Any]]:
    """lm-eval's task objects by our names, zero-shot; usable within the context, while their data is there.
    Raises: DataError: the data cannot be read or downloaded."""
    import datasets
    import lm_eval.tasks

    definitions, log = Path(lm_eval.tasks.__file__).parent, logging.getLogger("lm_eval.api.task")
    folders = sorted({str(definitions / TASKS[name].folder) for name in selection.tasks})
    manager = lm_eval.tasks.TaskManager(include_path=folders, include_defaults=False)
    with contextlib.ExitStack() as stack:
        # Local files are converted anew for each run, beside no cache of the user.
        cache = Path(stack.enter_context(tempfile.TemporaryDirectory())) if selection.files else None
        # No bars of conversions, and no warnings of what lm-eval's definitions leave to its defaults.
        stack.callback(log.setLevel, log.level)
        log.setLevel(logging.ERROR)
        if not datasets.are_progress_bars_disabled():
            datasets.disable_progress_bars()
            stack.callback(datasets.enable_progress_bars)
        loaded = {}
        for name in selection.tasks:
            source, path = TASKS[name], selection.files.get(name)
            # A group, since lm-eval takes a lone configuration for a new task and not for changes of one.
            local = path and cache and _local(source, path, cache)
            spec = {"group": "local", "task": [local]} if local else source.harness
            try:
                task = manager.load([spec])["tasks"][source.harness]
            except (OSError, ValueError, KeyError, RuntimeError) as error:
                place = path or f"the data of {source.harness}, which lm-eval downloads,"
                remedy = "mend the file" if path else f"give {source.file} in a folder by zeroshot_data"
                first = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise DataError(f"{name}: {place} cannot be loaded ({first}); {remedy}") from error
            task.set_config(key="num_fewshot", value=0)
            loaded[name] = task
        yield loaded


def _local(source: TaskSource, path: Path, cache: Path) -> dict[str, Any]:
    """A change of lm-eval's task that reads one split from a file and knows no other. The file is copied as
    it has been checked: lines alone, and no byte order mark, which other readers of JSON refuse."""
    copied = cache / source.file
    copied.write_text("".join(f"{line}\n" for line in _lines(path, source.fields)), encoding="utf-8")
    splits = {f"{split}_split": split if split == source.split else None for split in ("validation", "test")}
    return {
        "task": source.harness,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {source.split: str(copied)}, "cache_dir": str(cache)},
        "training_split": None,
        **splits,
    }


def _lines(path: Path, fields: Sequence[str]) -> list[str]:
    """The lines of a file that hold something. Raises: DataError if there is none, or one is no JSON object
    with the fields."""
    try:
        text = text_files.decode(path.read_bytes())
    except text_files.NotUtf8Error as error:
        raise DataError(f"{path}: {error}; want lines of JSON in UTF-8") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}); want lines of JSON in UTF-8") from None
    lines = {number: line for number, line in enumerate(text.split("\n"), 1) if line.strip()}
    if not lines:
        raise DataError(f"{path}: the file is empty; want a line of JSON for each item")
    for number, line in lines.items():
        try:
            found = text_files.parse_json(line)
        except ValueError as error:
            raise DataError(f"{path}: line {number} is no JSON ({error}); mend or remove it") from None
        absent = [field for field in fields if not isinstance(found, dict) or field not in found]
        if absent:
            raise DataError(f"{path}: line {number} lacks {', '.join(absent)}; want {', '.join(fields)}")
    return [*lines.values()]
