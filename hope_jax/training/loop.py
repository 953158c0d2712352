"""The training loop: start or resume, step, sum up. It knows a run only as a program."""

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from clu import parameter_overview

from hope_jax.cluster import processes
from hope_jax.cluster.lock import workdir_lock
from hope_jax.cluster.peers import Peers
from hope_jax.cluster.signals import stop_signals
from hope_jax.config.experiment import ExperimentConfig
from hope_jax.config.room import remedies
from hope_jax.core import files
from hope_jax.core.errors import ConfigError, NoRoomError, lack_of_room
from hope_jax.core.program import TrainProgram, TrainState
from hope_jax.core.types import Batch
from hope_jax.data.batches import TrainIterator, digest_of
from hope_jax.data.inputs import open_inputs
from hope_jax.data.tokenizer import Tokenizer, open_tokenizer
from hope_jax.storage.checkpoint import Checkpointer, abstract
from hope_jax.storage.stored import resume_point
from hope_jax.training import telemetry
from hope_jax.training.alarms import Guard, explain_divergence
from hope_jax.training.hooks import EVALUATED, Run, after_step, evaluate
from hope_jax.training.metrics import Progress, Recorder, Row
from hope_jax.training.run_report import write_report
from hope_jax.training.writers import check_wandb, open_writers

logger = logging.getLogger("hope_jax.training")

_SAMPLES = 3
_PROMPT_TOKENS = 32


def run(config: ExperimentConfig, workdir: Path, peers: Peers | None = None) -> dict[str, Any]:
    """Train (or resume) the run of `config` in `workdir` on its own data; returns `train`'s summary."""
    # the only place that needs the model: `train` drives any program
    from hope_jax.training.step import build_program

    logging.getLogger("hope_jax").setLevel(logging.INFO if jax.process_index() == 0 else logging.WARNING)
    processes.check_same("configuration", files.as_plain(config))
    _claim_workdir(workdir, config.train.resume)
    tokenizer = open_tokenizer(config.data)
    inputs = open_inputs(config, tokenizer)
    eval_batches = inputs.eval_batches()
    program = build_program(config, tokenizer.vocab_size)
    with contextlib.closing(inputs.train_iterator(jax.process_index(), jax.process_count())) as iterator:
        read = {"rows": iterator.get_state()["stream"], "held-out rows": digest_of(eval_batches)}
        processes.check_same("text or tokenizer", {**read, "tokenizer": tokenizer.sha256})
        return train(program, config, workdir, iterator, eval_batches, tokenizer, peers, inputs.about())


def train(
    program: TrainProgram,
    config: ExperimentConfig,
    workdir: Path,
    train_iterator: TrainIterator,
    eval_batches: Sequence[Batch],
    tokenizer: Tokenizer,
    peers: Peers | None = None,
    sources: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Run `program` from `train.step_offset`, or from the newest checkpoint, to step `train.steps`. SIGTERM
    or SIGINT, to any process, ends it early after a step, with a checkpoint.

    train_iterator: stands at batch `train.step_offset`; set to the checkpoint's place on resume.
    eval_batches: held-out batches, all used at each evaluation. peers: the run's other processes, which all
    call this; None: there are none. sources: JSON-able facts of what is read (`Inputs.about`), kept in
    checkpoints.
    Returns: what `hooks.evaluate` returns (None where nothing was evaluated), `loss`, `tokens`,
    `tokens_per_sec`, `train_seconds`, `compile_seconds`, `steps` (number of the last one), `interrupted`.
    Raises: ConfigError, CheckpointError, WorkdirError, DivergenceError, AlarmError, NoRoomError.
    """
    workdir = workdir.absolute()
    _claim_workdir(workdir, config.train.resume)
    check_wandb(config)
    if config.train.steps <= config.train.step_offset:
        raise ConfigError(
            f"train.steps={config.train.steps} is the number of the last step and must be larger than "
            f"train.step_offset={config.train.step_offset}, the number the run starts from"
        )
    with contextlib.ExitStack() as stack:
        stack.enter_context(_explained(config, workdir))
        stack.enter_context(files.writing(workdir))
        if jax.process_index() == 0:
            stack.enter_context(workdir_lock(workdir))
            (workdir / files.ALARM_FILE).unlink(missing_ok=True)
        stop = stack.enter_context(stop_signals())
        meta = {
            "tokenizer_digest": tokenizer.sha256,
            "versions": telemetry.versions(),
            "git_revision": telemetry.git_revision(),
            **({"sources": list(sources)} if sources else {}),
        }
        folder = workdir / files.CHECKPOINT_DIR
        checkpointer = Checkpointer(folder, config.checkpoint, files.as_plain(config), meta)
        stack.enter_context(checkpointer)
        this, state = _opened(stack, program, config, workdir, train_iterator, eval_batches, checkpointer)

        def stopping(step: int) -> str | None:
            return peers.stopping(step, stop.received) if peers else stop.received

        step, state = _steps(this, state, stopping)
        checkpointer.wait()
        summary = _summary(this, step, state)
        _write_results(this, state, summary, tokenizer)
        return summary


@contextlib.contextmanager
def _explained(config: ExperimentConfig, workdir: Path) -> Iterator[None]:
    """Says which keys help where a program does not fit into a device's memory. Raises: NoRoomError."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        lack = lack_of_room(error)
        if not lack:
            raise
        helps = "; ".join(remedies(config, jax.device_count()))
        raise NoRoomError(
            f"{lack}. The same command goes on from {resume_point(workdir)}. What helps, first what changes "
            f"no number: {helps}"
        ) from error


def _claim_workdir(workdir: Path, resume: str) -> None:
    """Make `workdir`, or accept one that holds a run to resume; process 0 does, for all.
    Raises: ConfigError if it holds a run and `resume` is "never", if it cannot be a folder, or if another
    process does not see it."""
    if jax.process_index() == 0:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--workdir={workdir}: cannot be made a folder ({error.strerror})") from error
        if (workdir / files.MANIFEST_FILE).exists():
            raise ConfigError(
                f"--workdir={workdir} is a release bundle, which training would spoil; copy its checkpoints/ "
                "into another --workdir to go on from it"
            )
        names = (files.CHECKPOINT_DIR, files.METRICS_FILE, files.CONFIG_FILE, files.SUMMARY_FILE)
        found = [name for name in names if (workdir / name).exists()]
        if found and resume == "never":
            raise ConfigError(
                f"train.resume=never, but {workdir} already holds a run ({', '.join(found)}); nothing was "
                "changed. Choose another --workdir, or train.resume=auto to continue it."
            )
    processes.barrier()
    if not workdir.is_dir():
        raise ConfigError(
            f"--workdir={workdir}: process 0 has made it, process {jax.process_index()} does not see it; "
            "name a folder that all processes share"
        )


def _opened(
    stack: contextlib.ExitStack,
    program: TrainProgram,
    config: ExperimentConfig,
    workdir: Path,
    iterator: TrainIterator,
    eval_batches: Sequence[Batch],
    checkpointer: Checkpointer,
) -> tuple[Run, TrainState]:
    """All that the steps need, and the state to start from. Rows go past the guard to the writers; these are
    closed with `stack`, the recorder first."""
    start, state, progress = _start(program, config, checkpointer, iterator)
    if jax.process_index() == 0:
        files.write_atomic(workdir / files.CONFIG_FILE, files.as_yaml(files.as_plain(config)))
        files.cut_back(workdir / files.METRICS_FILE, start)
    peak = telemetry.measure_matmul_peak()
    table = parameter_overview.get_parameter_overview(state.params, include_stats=False)
    for note in (f"parameters:\n{table}", *program.notes, f"devices: {telemetry.device_description()}"):
        logger.info("%s", note)
    seen = files.read_rows(workdir / files.METRICS_FILE)
    guard = Guard(config, [row for row in seen if row["step"] <= start])
    share = program.flops_per_token / peak
    writers = open_writers(stack, config, workdir, start, lambda rate: rate * share)

    def write(row: Row) -> None:
        judged = guard.row(row)
        for writer in writers:
            writer(judged)

    def explain(step: int, rows: list[Row]) -> str:
        return explain_divergence(step, rows, config, checkpointer.latest_path())

    recorder = stack.enter_context(contextlib.closing(Recorder(progress, write, explain)))
    fixed = (program, config, workdir, start, peak, iterator, eval_batches)
    return Run(*fixed, recorder, checkpointer, guard), state


def _start(
    program: TrainProgram, config: ExperimentConfig, checkpointer: Checkpointer, iterator: TrainIterator
) -> tuple[int, TrainState, Progress]:
    """Step, state and totals of the newest checkpoint, or fresh ones."""
    # the fresh arrays are dropped before the saved ones are read: both need not fit at once
    there = processes.word(checkpointer.latest_path() is not None)
    restored = checkpointer.restore(abstract(program.init())) if there else None
    if restored is None:
        state, offset = program.init(), config.train.step_offset
        # an addition keeps the placement that init chose: another one would compile the step twice
        return offset, state._replace(step=state.step + offset), Progress()
    iterator.set_state(restored.data)
    if restored.step > config.train.steps:
        raise ConfigError(
            f"train.steps={config.train.steps}: the workdir is at step {restored.step} already; set "
            "train.steps to the number of the last step, or use another workdir"
        )
    logger.info("resuming at step %d", restored.step)
    return restored.step, restored.state, Progress(**restored.meta["progress"])


def _steps(run: Run, state: TrainState, stopping: Callable[[int], str | None]) -> tuple[int, TrainState]:
    """The last step taken, and the state after it. stopping: why a signal ends the run after a step."""
    step, last = run.start, run.config.train.steps
    while step < last:
        batch = next(run.iterator)
        with jax.profiler.StepTraceAnnotation("train_step", step_num=step + 1):
            state, metrics = run.program.train_step(state, batch)
        step += 1
        run.recorder.add(step, metrics)
        if step == run.start + 1:
            run.recorder.finish_first_step()
        reason = stopping(step)
        after_step(run, step, state, stopping=reason is not None)
        if reason is not None and step < last:
            logger.warning("%s: stopped after step %d; the same command continues it", reason, step)
            break
    return step, state


def _summary(run: Run, step: int, state: TrainState) -> dict[str, Any]:
    """The run in numbers. The last row has the evaluation, unless a finished run lost it."""
    interrupted = step < run.config.train.steps
    # process 0 wrote the rows; whether to evaluate, which all do together, must be the same for all
    rows = processes.word(files.read_rows(run.workdir / files.METRICS_FILE)[-1:])
    last, progress = rows[-1] if rows else {}, run.recorder.progress()
    evaluated: dict[str, Any] = {key: last.get(key) for key in (*EVALUATED, "eval_writes")}
    if not interrupted and (last.get("step") != step or evaluated["eval_loss"] is None):
        evaluated = evaluate(run.program, state, run.eval_batches)
    rate = progress.steady_tokens / progress.steady_seconds if progress.steady_seconds else None
    summary = {
        **evaluated,
        "loss": last.get("loss"),
        "tokens": int(progress.tokens),
        "tokens_per_sec": rate,
        "train_seconds": progress.train_seconds,
        "compile_seconds": progress.compile_seconds,
        "steps": step,
        "interrupted": interrupted,
    }
    return dict(files.to_json(summary))


def _write_results(run: Run, state: TrainState, summary: dict[str, Any], tokenizer: Tokenizer) -> None:
    """`summary.json`, and the report made from it and `metrics.jsonl`."""
    started, program, config = time.perf_counter(), run.program, run.config
    samples = []
    if run.eval_batches and config.eval.generate_tokens and not summary["interrupted"]:
        rows = np.asarray(run.eval_batches[0].tokens)[:_SAMPLES, :_PROMPT_TOKENS]
        for seed, prompt in enumerate(rows, config.train.seed):
            ids = program.generate(state, prompt, config.eval.generate_tokens, 0.8, seed)
            texts = (tokenizer.decode([int(i) for i in part]) for part in (prompt, np.asarray(ids)))
            samples.append(dict(zip(("prompt", "text"), texts, strict=True)))
    if jax.process_index() != 0:
        return
    rate = summary["tokens_per_sec"]
    details = {
        "name": run.workdir.name,
        "device": telemetry.device_description(),
        "versions": telemetry.versions(),
        "parameters": sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(state.params)),
        "matmul_peak_flops": run.peak,
        "share_of_peak": rate * program.flops_per_token / run.peak if rate else None,
        "notes": program.notes,
        "samples": samples,
        "config": files.as_plain(config),
    }
    whole = json.dumps(files.to_json({**summary, **details}), indent=1, allow_nan=False)
    files.write_atomic(run.workdir / files.SUMMARY_FILE, f"{whole}\n")
    write_report(run.workdir)
    logger.info("report written in %.1f s: %s", time.perf_counter() - started, run.workdir / "report.html")
