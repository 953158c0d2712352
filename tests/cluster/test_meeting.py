"""Processes that come together: who is missed is named, by all and in time."""

import socket
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from hope_jax.cluster import meeting
from hope_jax.cluster.meeting import meet
from hope_jax.core.errors import ConfigError, ProcessError


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Group:
    """Processes as threads. words: what each was told."""

    def __init__(self, count: int, within: float) -> None:
        self.count, self.within = count, within
        self.address = f"127.0.0.1:{free_port()}"
        self.words: list[list[str]] = [[] for _ in range(count)]
        self.pool = ThreadPoolExecutor(count + 1)

    def come(self, index: int, count: int = 0, number: int | None = None) -> Future[None]:
        own = self.words[index]
        number = index if number is None else number
        return self.pool.submit(
            meet, self.address, count or self.count, number, self.within, lambda text: own.append(text)
        )


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("FIRST_WORD", 0.2), ("BETWEEN_WORDS", 0.3), ("_RETRY", 0.05)):
        monkeypatch.setattr(meeting, name, value)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_all_go_on_once_all_are_there_and_the_address_is_free(order: tuple[int, ...]) -> None:
    group = Group(3, 20.0)
    came = []
    for index in order:
        assert not any(one.done() for one in came)
        came.append(group.come(index))
        time.sleep(0.1)
    for one in came:
        one.result(10)
    socket.create_server(("127.0.0.1", int(group.address.split(":")[1]))).close()


def test_who_is_missing_is_said_while_waiting_and_at_the_end() -> None:
    group = Group(4, 1.0)
    came = [group.come(0), group.come(2)]
    for one in came:
        with pytest.raises(ProcessError) as caught:
            one.result(10)
        late = f"processes 1, 3 of 4 cannot be met at {group.address} within 1 s"
        assert str(caught.value).startswith(late) and "--join_within=SECONDS" in str(caught.value)
    for index in (0, 2):
        words = group.words[index]
        assert len(words) >= 2, "and again"
        assert words[0].startswith(f"waiting for processes 1, 3 of 4 to join at {group.address}; ")
        assert words[0].endswith("(--join_within=1)")


def test_process_0_is_missed_by_the_others() -> None:
    group = Group(2, 0.6)
    came = group.come(1)
    with pytest.raises(ProcessError, match=r"process 0 of 2 cannot be met at .* within 0.6 s"):
        came.result(10)
    assert group.words[1][0].startswith("process 1 waits for process 0 of 2 to answer at 127.0.0.1:")


def test_one_that_has_gone_again_and_strangers_are_missing() -> None:
    group = Group(3, 1.5)
    first = group.come(0)
    port = int(group.address.split(":")[1])
    time.sleep(0.1)
    for text in (b"hope_jax 1 3\n", b"GET / HTTP/1.1\r\n\r\n", b"hope_jax one 3\n", b"\xff" * 9000):
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(text)
    group.come(2)
    with pytest.raises(ProcessError, match="process 1 of 3 cannot be met"):
        first.result(10)
    assert group.words[0][-1].startswith("waiting for process 1 of 3 to join")


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"number": 1}, "process 1 is there twice"),
        ({"number": 2, "count": 4}, "process 2 was started for 4 processes, process 0 for 3"),
    ],
)
def test_numbers_and_counts_that_cannot_be(second: dict[str, int], message: str) -> None:
    group = Group(3, 20.0)
    came = [group.come(0), group.come(1)]
    time.sleep(0.3)
    for one in (*came, group.come(2, **second)):
        with pytest.raises(ConfigError, match=message):
            one.result(10)
        assert threading.active_count() < 50


def test_a_port_that_another_program_has_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ProcessError, match=f"cannot listen at 127.0.0.1:{port}"):
            meet(f"127.0.0.1:{port}", 2, 0, 20.0, lambda text: None)
