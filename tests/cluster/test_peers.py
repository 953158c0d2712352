"""How processes look after each other: signs of life, failures, a common last step."""

import threading
import time

import pytest

from hope_jax.cluster import peers as module
from hope_jax.cluster.peers import Peers


class SharedStore:
    """As the client of JAX's coordination service."""

    def __init__(self):
        self.values = {}
        self.lost = False

    def key_value_set(self, name, value, allow_overwrite):
        if self.lost:
            raise RuntimeError("store lost")
        self.values[name] = value

    def key_value_dir_get(self, folder):
        if self.lost:
            raise RuntimeError("store lost")
        return [pair for pair in self.values.items() if pair[0].startswith(folder)]

    def put(self, name, value):
        self.key_value_set(module._FOLDER + name, value, True)


class Clock:
    now = 0.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        time.sleep(0.001)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def group(clock):
    """Three processes, and what each was told at its end."""
    store, ends = SharedStore(), [[], [], []]
    made = [Peers(store, i, 3, 10.0, lambda *told, i=i: ends[i].append(told)) for i in range(3)]
    return store, made, ends


def look(clock, made, rounds=1, seconds=1.0):
    for _ in range(rounds):
        clock.now += seconds
        for peers in made:
            peers.look()


def test_processes_that_give_signs_live(clock, group):
    _, made, ends = group
    look(clock, made, rounds=30)
    assert ends == [[], [], []]


def test_a_silent_process_ends_the_others_and_is_named(clock, group):
    _, made, ends = group
    look(clock, made, rounds=3)
    look(clock, made[:1] + made[2:], rounds=10)
    assert ends == [[], [], []]
    look(clock, made[:1] + made[2:], rounds=2)
    for told in (ends[0], ends[2]):
        assert told[0] == ("process 1 of 3 is gone: no sign of life from it", 1)


def test_a_process_that_was_itself_held_up_blames_nobody(clock, group):
    _, made, ends = group
    look(clock, made, rounds=3)
    clock.now += 1000
    look(clock, made, rounds=3)
    assert ends == [[], [], []]


def test_the_first_to_notice_tells_the_others(clock, group):
    store, made, ends = group
    look(clock, made)
    store.put("gone", "1")
    look(clock, [made[2]])
    assert ends[2] == [("process 1 of 3 is gone: no sign of life from it", 1)]


def test_a_lost_store_is_process_0_gone(clock, group):
    store, made, ends = group
    look(clock, made)
    store.lost = True
    look(clock, [made[1]], rounds=11)
    assert ends[1][0] == ("process 0 of 3 is gone: no sign of life from it", 1)


def test_a_failure_is_told_with_its_exit_code(clock, group):
    _, made, ends = group
    made[1].fail("no room", 2)
    look(clock, made)
    told = ("process 1 of 3 stopped with an error: no room", 2)
    assert ends == [[told], [], [told]]


def test_a_verdict_waits_until_all_have_shown_that_they_live(clock, group):
    _, made, _ = group
    look(clock, made)
    waiting = threading.Thread(target=made[0].await_verdict)
    waiting.start()
    look(clock, [made[0], made[1]], rounds=3)
    time.sleep(0.02)
    assert waiting.is_alive()
    look(clock, [made[2], made[0]])
    waiting.join(5)
    assert not waiting.is_alive()


@pytest.mark.parametrize("steps", [(5, 5, 5), (5, 7, 6), (0, 3, 3)])
def test_a_signal_stops_all_after_the_same_step(clock, group, steps):
    _, made, _ = group
    stopped = [0, 0, 0]

    def run(i):
        for step in range(1, 100):
            received = "SIGTERM" if i == 1 and step >= steps[1] else None
            if made[i].stopping(step, received):
                stopped[i] = step
                return
            while step >= steps[i] and not over.is_set() and made[i]._last_step is None:
                time.sleep(0.001)  # as if the device were busy

    over = threading.Event()
    threads = [threading.Thread(target=run, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    look(clock, made, rounds=5)
    over.set()
    for thread in threads:
        thread.join(10)
    assert stopped == [max(steps) + 1] * 3 if steps[0] else len(set(stopped)) == 1 and stopped[0] > 0
    assert made[0].stopping(99, None) == "SIGTERM at process 1"


def test_no_step_is_taken_while_the_processes_agree(clock, group):
    store, made, _ = group
    made[0].stopping(4, None)
    store.put("stop", "SIGTERM at process 1")
    look(clock, [made[0]])
    held = threading.Thread(target=made[0].stopping, args=(5, None))
    held.start()
    time.sleep(0.05)
    assert held.is_alive()
    look(clock, made, rounds=2)
    held.join(5)
    assert not held.is_alive()
    assert made[0].stopping(5, None) == made[1].stopping(5, None) == "SIGTERM at process 1"
