"""One run in several processes: joining, speaking with one voice, and leaving together.

JAX's coordination service, in process 0, is the meeting place. What the host decides (which checkpoint,
whether to evaluate) is decided by process 0 and read by the others; collectives are left to the compiled
steps, which all processes run in the same order.
"""

import contextlib
import ctypes
import itertools
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
from absl import flags
from jax._src import clusters, distributed  # the coordination service has no public interface
from jax.experimental import multihost_utils

from hope_jax.cluster.addresses import AUTO, Cluster
from hope_jax.cluster.meeting import meet
from hope_jax.cluster.peers import INTERVAL, Peers
from hope_jax.core.errors import CheckpointError, ConfigError, ProcessError, UserError

logger = logging.getLogger("hope_jax.training")

_CONNECT_SECONDS = 120
"""Seconds in which JAX's service must have all processes, which have met before."""
_FOREVER_MS = 24 * 3600 * 1000
"""Waiting for another process has no limit of its own: one that is gone is noticed by `Peers`."""
_LINGER = 3 * INTERVAL
"""Seconds that process 0 stays, so that the others read why it goes before its service is gone."""

_rounds = itertools.count()
"""Of `everyone` and `barrier`, which all processes call in the same order."""


@contextlib.contextmanager
def joined(
    cluster: Cluster | None, resumes_at: Callable[[], str], gone_after: float, within: float
) -> Iterator[Peers | None]:
    """The run's processes as one, before any other use of JAX; yields the others. None, or a count of 1: this
    process alone, without others.

    They have to come together `within` so many seconds; while they wait, they say for whom. Where later
    another one fails, or gives no sign of life for `gone_after` seconds, this one says so and exits. An error
    inside the block is told to the others, once it is clear that none of them caused it by being gone; then
    `leave` has to end the process.

    resumes_at: says, when a process is gone, from what the same command goes on.
    Raises: ConfigError, ProcessError: the processes cannot find each other.
    """
    if cluster is None or cluster.size == 1:
        yield None
        return
    _connect(cluster, gone_after, within)
    state = distributed.global_state
    end = _ender(resumes_at, state.process_id)
    _on_abort(lambda: _say_if_lost(str(state.coordinator_address), end))
    peers = Peers(state.client, state.process_id, state.num_processes, gone_after, end)
    peers.start()
    try:
        # CPUs connect at the first collective, and give up where one process comes 30 s after another: let
        # that be here, where all are together, and not after each has compiled.
        multihost_utils.sync_global_devices("hope_jax")
        yield peers
    except BaseException as error:
        if isinstance(error, CheckpointError) or not isinstance(error, UserError):
            peers.await_verdict()
        peers.fail(str(error) or type(error).__name__, getattr(error, "exit_code", 1))
        raise
    barrier()
    peers.close()
    jax.distributed.shutdown()


def leave(code: int) -> NoReturn:
    """Ends a process that is still joined, at once: Python and JAX would wait for threads and processes that
    may never answer."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    if distributed.global_state.process_id == 0:
        time.sleep(_LINGER)
    os._exit(code)


def everyone(value: Any) -> list[Any]:
    """The JSON values of all processes, in their order, on all of them; each calls it at the same place."""
    if jax.process_count() == 1:
        return [value]
    client, folder = _client(), f"hope_jax/round/{next(_rounds)}"
    client.key_value_set(f"{folder}/{jax.process_index()}", json.dumps(value))
    keys = [f"{folder}/{i}" for i in range(jax.process_count())]
    return [json.loads(client.blocking_key_value_get(key, _FOREVER_MS)) for key in keys]


def word(value: Any) -> Any:
    """Process 0's JSON `value`, on all processes; each calls it at the same place."""
    return everyone(value if jax.process_index() == 0 else None)[0]


def barrier() -> None:
    """Waits until all processes are here."""
    if jax.process_count() > 1:
        _client().wait_at_barrier(f"hope_jax/barrier/{next(_rounds)}", _FOREVER_MS)


def check_same(what: str, value: Any) -> None:
    """Raise ConfigError unless a JSON value is that of process 0."""
    if word(value) != value:
        raise ConfigError(
            f"process {jax.process_index()} was started with another {what} than process 0; start all "
            "processes with the same command"
        )


def _client() -> Any:
    return distributed.global_state.client


def _connect(cluster: Cluster, gone_after: float, within: float) -> None:
    # `Peers` agrees on a signal's step, with the loop's own handlers
    jax.config.update("jax_enable_preemption_service", False)
    # Orbax would wait by collectives on the devices, from a thread, in between those of the steps
    flags.FLAGS["experimental_orbax_use_distributed_barrier"].value = True
    address, count, place, devices = (*cluster, None) if cluster != AUTO else _of_environment(within)
    assert address is not None and count is not None and place is not None
    if count > 1:
        meet(address, count, place, within, logger.warning)
    apart = (
        f"the processes have met at {address}, but JAX's service there did not get all of them within "
        f"{_CONNECT_SECONDS} s: one may have ended since; start all of them again"
    )
    _on_abort(lambda: _exit_saying(apart, ProcessError.exit_code))
    try:
        jax.distributed.initialize(
            address,
            count,
            place,
            devices,
            cluster_detection_method="deactivate",
            initialization_timeout=_CONNECT_SECONDS,
            # far behind that of `Peers`, whose message is clearer, also where this host is short of time
            heartbeat_timeout_seconds=2 * int(gone_after) + 60,
        )
    except RuntimeError as error:
        raise ProcessError(f"{apart} ({error})") from error


def _of_environment(within: float) -> tuple[str, int, int, Any]:
    """Address, count and number of this process, and the devices that are its own, as the cluster says."""
    unknown = (
        "--distributed=auto: no cluster is recognised here (Slurm, Open MPI, Cloud TPU, or Kubernetes with "
        "the Python package kubernetes); name the processes with --coordinator or --hosts"
    )
    given = os.environ.get("JAX_COORDINATOR_ADDRESS")
    try:
        detect = clusters.ClusterEnv.auto_detect_unset_distributed_params
        address, count, place, devices = detect(given, None, None, None, None, int(within))
    except ValueError as error:
        raise ConfigError(f"{unknown} ({error})") from error
    if address is None or count is None or place is None:
        raise ConfigError(unknown)
    return address, count, place, None if "JAX_LOCAL_DEVICE_IDS" in os.environ else devices


def _ender(resumes_at: Callable[[], str], index: int) -> Callable[[str, int], None]:
    """What ends this process when another cannot go on: one paragraph, an exit code."""

    def end(reason: str, code: int) -> None:
        more = f"Process {index} stops too; the same command on all hosts goes on from {resumes_at()}."
        _exit_saying(f"{reason}. {more}", code, _LINGER if index == 0 else 0.0)

    return end


def _exit_saying(text: str, code: int, linger: float = 0.0) -> NoReturn:
    # the main thread may hold the locks of streams and logs, and wait for ever
    os.write(2, f"error: {text}\n".encode())
    _on_abort(lambda: os._exit(code))
    time.sleep(linger)
    os._exit(code)


def _say_if_lost(address: str, end: Callable[[str, int], None]) -> None:
    """Ends this process if the coordinator cannot be reached any more."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
    except OSError:
        end("process 0, the coordinator, is gone or out of reach", 1)


def _on_abort(say: Callable[[], None]) -> None:
    """Has `say` called before the process is aborted, which it may forestall by exiting. JAX's client aborts
    its process, with a stack trace, where it cannot reach process 0, first or last."""
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: say())
    _kept.append(handler)
    library = ctypes.CDLL(None)
    library.signal.argtypes, library.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    library.signal(int(signal.SIGABRT), ctypes.cast(handler, ctypes.c_void_p))


_kept: list[Any] = []
"""C functions that the process may still call."""
