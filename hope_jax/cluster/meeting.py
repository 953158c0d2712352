"""How the processes of a run come together: who is there, and who is missed.

JAX's coordination service waits for all processes without a word. So process 0 first listens at the
coordinator's address itself, until every other has called; then the service takes the address over. Standard
library only.
"""

import selectors
import socket
import time
from collections.abc import Callable, Iterable, Sequence

from hope_jax.core.errors import ConfigError, ProcessError

WITHIN = 300.0
"""Seconds that a process waits for the others, unless a user says otherwise."""
FIRST_WORD, BETWEEN_WORDS = 10.0, 30.0
"""Seconds until a process says for whom it waits, and until it says so again."""

_GREETING = "hope_jax"
_RETRY = 1.0
_LONGEST = 4096
"""Bytes of a line at most: whoever sends more is no process of a run."""

Say = Callable[[str], None]


def meet(address: str, count: int, index: int, within: float, say: Say) -> None:
    """Returns once all `count` processes have called this.

    Args:
        address: HOST:PORT of process 0. index: this process's number. within: seconds that it waits.
        say: told for whom this process waits, now and then.
    Raises:
        ProcessError: not all have come in time; the message names those that are missed. ConfigError: two
            processes have the same number, or were told of another count.
    """
    clock = _Clock(within)
    if index == 0:
        _receive(address, count, clock, say)
    else:
        _call(address, count, index, clock, say)


class _Clock:
    """When to say something, and when to give up."""

    def __init__(self, within: float) -> None:
        self._began = time.monotonic()
        self.within = within
        self._next_word = FIRST_WORD

    def left(self) -> float:
        return self._began + self.within - time.monotonic()

    def is_time_for_a_word(self) -> bool:
        passed = self.within - self.left()
        if passed < self._next_word:
            return False
        self._next_word = passed + BETWEEN_WORDS
        return True


def _receive(address: str, count: int, clock: _Clock, say: Say) -> None:
    """Process 0: waits for the calls of all others."""
    calls: dict[socket.socket, int | None] = {}
    try:
        with _listening(address, clock) as door, selectors.DefaultSelector() as ears:
            ears.register(door, selectors.EVENT_READ)
            while missing := sorted(set(range(1, count)) - set(calls.values())):
                if clock.left() <= 0:
                    text = _late(_named(missing, count), address, clock)
                    _answer(calls, f"late {text}")
                    raise ProcessError(text)
                if clock.is_time_for_a_word():
                    text = f"waiting for {_named(missing, count)} to join at {address}; {_patience(clock)}"
                    say(text)
                    _answer(calls, f"wait {text}")
                for key, _ in ears.select(min(_RETRY, max(0.0, clock.left()))):
                    if key.fileobj is door:
                        call = door.accept()[0]
                        call.settimeout(_RETRY)
                        calls[call] = None
                        ears.register(call, selectors.EVENT_READ)
                    elif isinstance(key.fileobj, socket.socket) and not _hear(key.fileobj, calls, count):
                        ears.unregister(key.fileobj)
                        del calls[key.fileobj]
                        key.fileobj.close()
        # The address is free again before the others make for it.
        _answer(calls, "go")
    finally:
        for call in calls:
            call.close()


def _hear(call: socket.socket, calls: dict[socket.socket, int | None], count: int) -> bool:
    """Notes who calls; False: nobody of this run, or one that has gone again."""
    index, told = _introduced(_line(call))
    if index is None:
        return False
    problem = None
    if told != count:
        problem = f"was started for {told} processes, process 0 for {count}"
    elif index in calls.values() or not 0 < index < count:
        problem = "is there twice"
    if problem:
        text = f"process {index} {problem}; give all the same count, and each a number of its own"
        _answer(calls, f"wrong {text}")
        _answer([call], f"wrong {text}")
        raise ConfigError(text)
    calls[call] = index
    return True


def _call(address: str, count: int, index: int, clock: _Clock, say: Say) -> None:
    """Every other process: calls process 0 until it answers."""
    host, _, port = address.rpartition(":")
    while True:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=5 * _RETRY) as call:
                call.sendall(f"{_GREETING} {index} {count}\n".encode())
                if _is_let_in(call, clock, say):
                    return
        except OSError:
            pass  # not there yet, or gone again
        if clock.left() <= 0:
            raise ProcessError(_late(f"process 0 of {count}", address, clock))
        if clock.is_time_for_a_word():
            say(f"process {index} waits for process 0 of {count} to answer at {address}; {_patience(clock)}")
        time.sleep(min(_RETRY, max(0.0, clock.left())))


def _is_let_in(call: socket.socket, clock: _Clock, say: Say) -> bool:
    """Whether process 0 says that all are there; False: it is gone."""
    # It is the first to give up, and says so.
    while clock.left() > -5 * _RETRY:
        call.settimeout(max(_RETRY, clock.left() + 5 * _RETRY))
        kind, _, text = _line(call).partition(" ")
        if kind == "go":
            return True
        if kind == "wait":
            say(text)
            clock.is_time_for_a_word()
        elif kind == "late":
            raise ProcessError(text)
        elif kind == "wrong":
            raise ConfigError(text)
        else:
            return False
    return False


def _listening(address: str, clock: _Clock) -> socket.socket:
    """A socket at the address's port, which a run that has just ended may still hold for a moment."""
    port = int(address.rpartition(":")[2])
    both = socket.has_dualstack_ipv6()
    while True:
        try:
            if both:
                return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
            return socket.create_server(("", port))
        except OSError as error:
            if clock.left() < clock.within - FIRST_WORD or clock.left() <= 0:
                raise ProcessError(
                    f"process 0 cannot listen at {address} ({error.strerror}): another program may have the "
                    "port; choose another one, for all processes"
                ) from error
            time.sleep(_RETRY)


def _answer(calls: Iterable[socket.socket], text: str) -> None:
    for call in calls:
        try:
            call.sendall(f"{text}\n".encode())
        except OSError:
            continue  # gone: the service, or the others, will miss it


def _line(call: socket.socket) -> str:
    """The next line; empty where there is none."""
    found = b""
    while not found.endswith(b"\n") and len(found) < _LONGEST:
        try:
            byte = call.recv(1)
        except OSError:
            return ""
        if not byte:
            return ""
        found += byte
    return found.decode(errors="replace").strip()


def _introduced(line: str) -> tuple[int | None, int]:
    words = line.split()
    if len(words) == 3 and words[0] == _GREETING and all(word.isdecimal() for word in words[1:]):
        return int(words[1]), int(words[2])
    return None, 0


def _named(missing: Sequence[int], count: int) -> str:
    return f"process{'es' if len(missing) > 1 else ''} {', '.join(map(str, missing))} of {count}"


def _patience(clock: _Clock) -> str:
    return f"{max(0.0, clock.left()):.0f} s are left (--join_within={clock.within:g})"


def _late(who: str, address: str, clock: _Clock) -> str:
    return (
        f"{who} cannot be met at {address} within {clock.within:g} s: start all processes with the same "
        "command within that time, see that they reach that address (name and port, firewalls), or give more "
        "with --join_within=SECONDS"
    )
