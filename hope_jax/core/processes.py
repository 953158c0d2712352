"""Processes that a process starts."""

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """Has this process end when the one that started it does, also if that is killed."""

    def wait() -> None:
        if (parent := multiprocessing.parent_process()) is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
