"""SIGTERM and SIGINT: the first asks the loop to stop after the step, the second ends the process."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType, SimpleNamespace


@contextlib.contextmanager
def stop_signals() -> Iterator[SimpleNamespace]:
    """What is yielded has the name of the first SIGTERM or SIGINT as `received`, before it None; a second one
    exits at once (143 or 130). Outside the main thread, where Python cannot install handlers, it does
    nothing."""
    stop = SimpleNamespace(received=None)

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.received is not None:
            os._exit(128 + number)
        stop.received = signal.Signals(number).name
        # print() and the logging locks are not safe in a handler that may interrupt either
        os.write(2, f"{stop.received}: finishing the step, then saving; again to exit at once\n".encode())

    main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGTERM, signal.SIGINT) if main else ()
    previous = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield stop
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
