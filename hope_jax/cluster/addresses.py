"""Where the processes of a run meet: from flags, a list of hosts, or what the cluster itself says.

Standard library only: these checks come before JAX is imported.
"""

import contextlib
import os
import socket
from collections.abc import Sequence
from typing import NamedTuple

from hope_jax.core.errors import ConfigError

DEFAULT_PORT = 8476
PROCESS_ID = "HOPE_PROCESS_ID"
"""Environment variable with this process's place in `--hosts`, where its host's name does not say it."""


class Cluster(NamedTuple):
    """Several processes. coordinator: HOST:PORT of process 0. size: how many there are. place: this one's
    number. All None: JAX asks the environment."""

    coordinator: str | None
    size: int | None
    place: int | None


AUTO = Cluster(None, None, None)


def find(
    coordinator: str | None, count: int | None, index: int | None, hosts: Sequence[str], mode: str
) -> Cluster | None:
    """The cluster that the flags `--coordinator`, `--num_processes`, `--process_id`, `--hosts` (one process
    each, the first the coordinator) and `--distributed` ("none" or "auto") name; None: this process is the
    only one.

    Raises: ConfigError for values, or a combination of them, that make no sense.
    """
    if mode not in ("none", "auto"):
        raise ConfigError(f"--distributed={mode}: want none or auto")
    explicit = {"--coordinator": coordinator, "--num_processes": count, "--process_id": index}
    given = [name for name, value in explicit.items() if value is not None]
    ways = [*(["/".join(given)] if given else []), *(["--hosts"] if hosts else [])]
    ways += ["--distributed=auto"] if mode == "auto" else []
    if len(ways) > 1:
        raise ConfigError(f"{' and '.join(ways)} both say where the processes are; give one of them")
    if mode == "auto":
        return AUTO
    if hosts:
        return _from_hosts(hosts)
    if not given:
        return None
    if coordinator is None or count is None or index is None:
        missing = [name for name in explicit if name not in given]
        raise ConfigError(f"{', '.join(given)} without {' and '.join(missing)}; the three belong together")
    return _checked(coordinator, count, index)


def own_names() -> set[str]:
    """What this host may be called in a list of hosts: its names and its addresses."""
    name = socket.gethostname()
    names = {name, name.split(".")[0], socket.getfqdn()}
    with contextlib.suppress(OSError):  # a host that cannot resolve its own name is known by it all the same
        names |= {str(entry[4][0]) for entry in socket.getaddrinfo(name, None)}
    return names


def _from_hosts(hosts: Sequence[str]) -> Cluster:
    bare = [host.partition(":")[0] for host in hosts]
    if not all(bare) or any(":" in host for host in hosts[1:]):
        raise ConfigError(
            f"--hosts={','.join(hosts)}: want names parted by commas, the first perhaps with a port, as in "
            "a:1234,b,c"
        )
    coordinator = hosts[0] if ":" in hosts[0] else f"{hosts[0]}:{DEFAULT_PORT}"
    if PROCESS_ID in os.environ:
        try:
            index = int(os.environ[PROCESS_ID])
        except ValueError as error:
            raise ConfigError(f"{PROCESS_ID}={os.environ[PROCESS_ID]!r} is no number") from error
        return _checked(coordinator, len(hosts), index, PROCESS_ID)
    names = own_names()
    found = [i for i, host in enumerate(bare) if host in names]
    if len(found) != 1:
        problem = "is not among them" if not found else "is named more than once"
        raise ConfigError(
            f"--hosts={','.join(hosts)}: this host ({', '.join(sorted(names))}) {problem}; correct the list, "
            f"or set {PROCESS_ID} to this process's place in it, from 0"
        )
    return _checked(coordinator, len(hosts), found[0])


def _checked(coordinator: str, count: int, index: int, index_name: str = "--process_id") -> Cluster:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"--coordinator={coordinator}: want HOST:PORT, for example node1:{DEFAULT_PORT}")
    if count < 1:
        raise ConfigError(f"--num_processes={count}: want at least 1")
    if not 0 <= index < count:
        raise ConfigError(f"{index_name}={index}: want 0 to {count - 1}, as there are {count} processes")
    return Cluster(coordinator, count, index)
