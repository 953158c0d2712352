"""How the processes of a run come together: who is there, and who is missed.

JAX's coordination service waits for all processes without a word. So process 0 first listens at the
coordinator's address itself, until every other has called; then the service takes the address over. Standard
library only.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Iterable

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

    address: HOST:PORT of process 0. index: this process's number. within: seconds that it waits. say: told
    for whom this process waits, now and then.
    Raises: ProcessError: not all have come in time; the message names those that are missed. ConfigError: two
    processes have the same number, or were told of another count.
    """
    clock = _Clock(address, within)
    asyncio.run(_receive(clock, count, say) if index == 0 else _call(clock, count, index, say))


class _Clock:
    """When to say something, and when to give up."""

    def __init__(self, address: str, within: float) -> None:
        self.address, self.within = address, within
        self._end = time.monotonic() + within
        self._next_word = FIRST_WORD

    def left(self) -> float:
        return self._end - time.monotonic()

    def is_time_for_a_word(self) -> bool:
        passed = self.within - self.left()
        due = passed >= self._next_word
        if due:
            self._next_word = passed + BETWEEN_WORDS
        return due

    def pause(self) -> float:
        return min(_RETRY, max(0.0, self.left()))

    def patience(self) -> str:
        return f"{max(0.0, self.left()):.0f} s are left (--join_within={self.within:g})"

    def late(self, who: str) -> str:
        return (
            f"{who} cannot be met at {self.address} within {self.within:g} s: start all processes with the "
            "same command within that time, see that they reach that address (name and port, firewalls), or "
            "give more with --join_within=SECONDS"
        )


async def _receive(clock: _Clock, count: int, say: Say) -> None:
    """Process 0: waits for the calls of all others."""
    calls: dict[int, asyncio.StreamWriter] = {}
    wrong: list[str] = []
    news = asyncio.Event()

    async def hear(reader: asyncio.StreamReader, call: asyncio.StreamWriter) -> None:
        """Notes who calls, until it goes again; nobody of this run is let go at once."""
        with contextlib.closing(call), contextlib.suppress(OSError, ValueError):
            words = (await reader.readline()).decode(errors="replace").split()
            if len(words) != 3 or words[0] != _GREETING or not all(word.isdecimal() for word in words[1:]):
                return
            index, told = map(int, words[1:])
            problem = ""
            if told != count:
                problem = f"was started for {told} processes, process 0 for {count}"
            elif index in calls or not 0 < index < count:
                problem = "is there twice"
            news.set()
            if problem:
                wrong.append(
                    f"process {index} {problem}; give all the same count, and each a number of its own"
                )
                await _tell([call], f"wrong {wrong[0]}")
                return
            calls[index] = call
            try:
                await reader.read(1)
            finally:
                del calls[index]

    server = await asyncio.start_server(hear, sock=await _door(clock), limit=_LONGEST)
    try:
        while missing := [str(i) for i in range(1, count) if i not in calls]:
            who = f"process{'es' if len(missing) > 1 else ''} {', '.join(missing)} of {count}"
            if wrong:
                await _tell(calls.values(), f"wrong {wrong[0]}")
                raise ConfigError(wrong[0])
            if clock.left() <= 0:
                await _tell(calls.values(), f"late {clock.late(who)}")
                raise ProcessError(clock.late(who))
            if clock.is_time_for_a_word():
                text = f"waiting for {who} to join at {clock.address}; {clock.patience()}"
                say(text)
                await _tell(calls.values(), f"wait {text}")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(news.wait(), clock.pause())
            news.clear()
    finally:
        server.close()
    # The address is free again before the others make for it.
    await _tell(calls.values(), "go")


async def _call(clock: _Clock, count: int, index: int, say: Say) -> None:
    """Every other process: calls process 0 until it answers."""
    host, _, port = clock.address.rpartition(":")
    while True:
        with contextlib.suppress(OSError):  # not there yet, or gone again
            connecting = asyncio.open_connection(host.strip("[]"), int(port))
            reader, call = await asyncio.wait_for(connecting, 5 * _RETRY)
            with contextlib.closing(call):
                await _tell([call], f"{_GREETING} {index} {count}")
                if await _is_let_in(reader, clock, say):
                    return
        if clock.left() <= 0:
            raise ProcessError(clock.late(f"process 0 of {count}"))
        if clock.is_time_for_a_word():
            who = f"process {index} waits for process 0 of {count}"
            say(f"{who} to answer at {clock.address}; {clock.patience()}")
        await asyncio.sleep(clock.pause())


async def _is_let_in(reader: asyncio.StreamReader, clock: _Clock, say: Say) -> bool:
    """Whether process 0 says that all are there; False: it is gone."""
    while clock.left() > -5 * _RETRY:  # process 0 is the first to give up, and says so
        line = await asyncio.wait_for(reader.readline(), max(_RETRY, clock.left() + 5 * _RETRY))
        kind, _, text = line.decode(errors="replace").strip().partition(" ")
        if kind == "late":
            raise ProcessError(text)
        if kind == "wrong":
            raise ConfigError(text)
        if kind != "wait":
            return kind == "go"
        say(text)
        clock.is_time_for_a_word()
    return False


async def _door(clock: _Clock) -> socket.socket:
    """A socket at the address's port, which a run that has just ended may still hold for a moment."""
    at = ("", int(clock.address.rpartition(":")[2]))
    while True:
        try:
            if socket.has_dualstack_ipv6():
                return socket.create_server(at, family=socket.AF_INET6, dualstack_ipv6=True)
            return socket.create_server(at)
        except OSError as error:
            if clock.left() < clock.within - FIRST_WORD or clock.left() <= 0:
                raise ProcessError(
                    f"process 0 cannot listen at {clock.address} ({error.strerror}): another program may "
                    "have the port; choose another one, for all processes"
                ) from error
            await asyncio.sleep(_RETRY)


async def _tell(calls: Iterable[asyncio.StreamWriter], text: str) -> None:
    for call in list(calls):
        with contextlib.suppress(OSError):  # gone: the service, or the others, will miss it
            call.write(f"{text}\n".encode())
            await call.drain()
