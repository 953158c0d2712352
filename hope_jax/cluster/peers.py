"""The other processes of a run: whether they live, why one of them stopped, and after which step all stop.

Each process puts a sign of life into a store that all see (JAX's coordination service, in process 0) and
reads those of the others, once a second, in a thread: a collective that waits for a process that is gone
would wait for ever, or fail without saying for whom.
"""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

INTERVAL = 1.0
"""Seconds between two looks at the store."""
GONE_AFTER = 30.0
"""Seconds without a sign of life after which a process counts as gone, unless a user says otherwise."""
_FOLDER = "hope_jax/peers/"


class Peers:
    """Looks after the other processes of a run, from `start` to `close`.

    client: of JAX's coordination service. index, count: this process's place, and how many there are.
    gone_after: seconds without a sign of life after which a process counts as gone. end: told, in the thread,
    why this process cannot go on and with which exit code; ends the process.
    """

    def __init__(
        self, client: Any, index: int, count: int, gone_after: float, end: Callable[[str, int], None]
    ) -> None:
        self._client, self._index, self._count = client, index, count
        self._gone_after, self._end = gone_after, end
        self._signs = 0
        # seconds in which this process looked: where it was itself held up, the others were not silent
        self._clock = 0.0
        self._looked_at = time.monotonic()
        self._seen: dict[int, tuple[str, float]] = dict.fromkeys(range(count), ("", 0.0))
        self._read_at = 0.0
        self._step = 0
        self._last_step: int | None = None
        self._reason: str | None = None
        self._asked: str | None = None
        self._answered = False
        self._steps = threading.Condition()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="peers", daemon=True)

    def start(self) -> None:
        """Begins to look."""
        self._thread.start()

    def close(self) -> None:
        """Stops looking."""
        self._over.set()
        self._thread.join()

    def stopping(self, step: int, received: str | None) -> str | None:
        """Why all processes stop after `step`; None: they go on. Called after every step, in order. A signal
        that one process received stops all after the same step: while they agree on it, none takes
        another."""
        with self._steps:
            self._asked = received
            self._steps.wait_for(lambda: not self._answered or self._last_step is not None)
            self._step = step
            return self._reason if self._last_step is not None and step >= self._last_step else None

    def fail(self, message: str, code: int) -> None:
        """Tells the others that this process stops with an error."""
        self._tell(f"failed/{self._index}", json.dumps([message, code]))

    def await_verdict(self) -> None:
        """Returns once every process has shown that it lives; where one is gone, `end` comes first."""
        # a sign found from then on was given after this call
        enough = self._clock + 2 * INTERVAL
        while any(at < enough for i, (_, at) in self._seen.items() if i != self._index):
            time.sleep(INTERVAL / 4)

    def look(self) -> None:
        """One round: a sign of life, the others' signs, and what they ask for."""
        self._signs += 1
        began_at = time.monotonic()
        self._clock += min(began_at - self._looked_at, 2 * INTERVAL)
        try:
            self._put(f"alive/{self._index}", str(self._signs))
            pairs = self._client.key_value_dir_get(_FOLDER)
            found = {key.removeprefix(_FOLDER): value for key, value in pairs}
        except Exception:  # whatever the service says that is out of reach
            found = {}
        self._looked_at = time.monotonic()
        self._clock += self._looked_at - began_at
        if found:
            self._read_at = self._clock
            self._check(found)
            self._agree(found)
        elif self._clock - self._read_at > self._gone_after:
            self._gone(0)  # where the store is

    def _run(self) -> None:
        while not self._over.wait(INTERVAL):
            self.look()

    def _gone(self, index: int) -> None:
        self._end(f"process {index} of {self._count} is gone: no sign of life from it", 1)

    def _check(self, found: Mapping[str, str]) -> None:
        """Ends where another process has failed, or is gone."""
        others = [i for i in range(self._count) if i != self._index]
        failed = next((i for i in others if f"failed/{i}" in found), None)
        if failed is not None:
            message, code = json.loads(found[f"failed/{failed}"])
            self._end(f"process {failed} of {self._count} stopped with an error: {message}", int(code))
        gone = int(found["gone"]) if "gone" in found else None
        for i in others:
            sign, at = self._seen[i]
            if found.get(f"alive/{i}", sign) != sign:
                self._seen[i] = (found[f"alive/{i}"], self._clock)
            elif gone is None and self._clock - at > self._gone_after:
                gone = i
        if gone is not None and gone != self._index:
            self._tell("gone", str(gone))
            self._gone(gone)

    def _agree(self, found: Mapping[str, str]) -> None:
        """Answers a wish to stop with the last step taken, and stops after the latest answer's next step."""
        if self._last_step is not None:
            return
        if self._asked and "stop" not in found:
            self._tell("stop", f"{self._asked} at process {self._index}")
        if "stop" in found and not self._answered:
            with self._steps:
                self._answered = True
                step = self._step
            self._tell(f"step/{self._index}", str(step))
        answers = [int(found[f"step/{i}"]) for i in range(self._count) if f"step/{i}" in found]
        if self._answered and len(answers) == self._count:
            with self._steps:
                self._last_step, self._reason = max(answers) + 1, found["stop"]
                self._steps.notify_all()

    def _put(self, name: str, value: str) -> None:
        self._client.key_value_set(_FOLDER + name, value, allow_overwrite=True)

    def _tell(self, name: str, value: str) -> None:
        """Puts what others may have put, or cannot see any more."""
        with contextlib.suppress(Exception):
            self._put(name, value)
