"""Train a model, or resume the run of a workdir.

python -m hope_jax.launch --config=FILE [--config.KEY=VALUE ...] [--workdir=DIR]
    [--compilation_cache=DIR|none]
    [--coordinator=HOST:PORT --num_processes=N --process_id=I | --hosts=A,B,... | --distributed=auto]

Progress goes to stderr; the last line of stdout is a JSON object with eval_loss, unigram_entropy,
tokens_per_sec, train_seconds, eval_loss_no_writes and periods_written (docs/training.md). With one of the
last three, one of several processes that train together (same page); process 0 writes.
"""

import json
import logging
import sys
from functools import partial
from pathlib import Path
from typing import NoReturn

from absl import flags

from hope_jax import cli, compilation_cache
from hope_jax.cluster import addresses
from hope_jax.cluster.meeting import WITHIN
from hope_jax.cluster.peers import GONE_AFTER
from hope_jax.config.check import validate, warnings
from hope_jax.core.files import writing
from hope_jax.core.output import say
from hope_jax.core.paths import make_room
from hope_jax.data.synthetic import find_task

_WORKDIR = cli.define_path(
    "workdir", "Folder of the run; default runs/<name of the config file, and the values given to it>."
)
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, for all processes.")
_COUNT = flags.DEFINE_integer("num_processes", None, "With --coordinator: number of processes.")
_INDEX = flags.DEFINE_integer("process_id", None, "With --coordinator: this process, from 0.")
_HOSTS = flags.DEFINE_list(
    "hosts",
    [],
    "All hosts, one process on each, the first (perhaps with :PORT) the coordinator. A process finds its "
    f"place by the name of its host, or in {addresses.PROCESS_ID}.",
)
_DISTRIBUTED = flags.DEFINE_string(
    "distributed", "none", "auto: the processes are those of the Slurm, Open MPI, Kubernetes or TPU job."
)
_GONE_AFTER = flags.DEFINE_float(
    "gone_after", GONE_AFTER, "Seconds without a sign of life after which another process counts as gone.", 5
)
_JOIN_WITHIN = flags.DEFINE_float(
    "join_within", WITHIN, "Seconds in which all processes have to be started.", 1.0
)
cli.define_config()

logger = logging.getLogger("hope_jax.launch")

SUMMARY_KEYS = (
    *("eval_loss", "unigram_entropy", "tokens_per_sec", "train_seconds"),
    *("eval_loss_no_writes", "periods_written"),
)


def main(argv: list[str]) -> None:
    """Reads and checks the configuration, the cheap checks first, then trains."""
    cli.refuse_arguments(argv)
    config = cli.load_config()
    validate(config)
    find_task(config.data.source, config.data.task_options, config.data.seq_len)
    workdir = Path(_WORKDIR.value or Path("runs") / cli.config_name())
    found = addresses.find(_COORDINATOR.value, _COUNT.value, _INDEX.value, _HOSTS.value, _DISTRIBUTED.value)

    # From here on JAX is needed, which takes seconds to import.
    import jax

    from hope_jax.cluster import processes
    from hope_jax.storage.stored import resume_point

    resumes_at = partial(resume_point, workdir)
    with processes.joined(found, resumes_at, _GONE_AFTER.value, _JOIN_WITHIN.value) as peers:
        with writing(workdir):
            make_room(workdir)
        compilation_cache.use()

        if config.train.compute_dtype == "float64":
            jax.config.update("jax_enable_x64", True)
        devices = jax.device_count()
        validate(config, device_count=devices)
        from hope_jax.training.loop import run

        first = jax.process_index() == 0
        for warning in warnings(config) if first else ():
            logger.warning("warning: %s", warning)
        summary = run(config, workdir, peers)
    if first:  # when no other process waits for this one
        say(json.dumps({key: summary[key] for key in SUMMARY_KEYS}))


def _leave(code: int) -> NoReturn:
    """Exits after an error, also where other processes wait."""
    jax = sys.modules.get("jax")
    if jax is not None and jax.distributed.is_initialized():
        from hope_jax.cluster import processes

        processes.leave(code)
    sys.exit(code)


if __name__ == "__main__":
    cli.run_command(main, leave=_leave)
