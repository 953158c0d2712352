"""Processes that work off tasks, and whose death is noticed.

A pool of multiprocessing starts another process for one that was killed, and waits for ever for its task.
"""

import contextlib
from collections.abc import Callable, Iterable
from multiprocessing import connection
from typing import Any

import multiprocess

from hope_jax.core.errors import DataError

_ready: Callable[[list[Any]], Iterable[Any]] = connection.wait


class TaskKilled(DataError):
    """The process of a task was killed."""


def run_all(work: Callable[[int], Any], tasks: Iterable[int], processes: int, method: str) -> None:
    """Calls `work` with each task, in processes started by `method`; returns when all are done.

    The first exception ends the other processes and is raised. Raises: TaskKilled: by its number.
    """
    context, left = multiprocess.get_context(method), list(tasks)[::-1]
    running: dict[Any, tuple[Any, int]] = {}  # a process's pipe: it, and its task
    started = []
    try:
        for _ in range(min(processes, len(left))):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(work, there), daemon=True)
            process.start()
            started.append(process)
            there.close()  # so that the process's end is the pipe's
            running[here] = (process, left.pop())
            _send(here, running[here][1])
        while running:
            for pipe in _ready(list(running)):
                process, task = running.pop(pipe)
                try:
                    error = pipe.recv()
                except (EOFError, ConnectionResetError):
                    process.join()
                    raise TaskKilled(
                        f"task {task}: its process was ended (exit code {process.exitcode}; -9 is often for "
                        "want of memory); run again, with fewer --workers perhaps: what is done stays"
                    ) from None
                if error is not None:
                    raise error
                if left:
                    running[pipe] = (process, left.pop())
                    _send(pipe, running[pipe][1])
                else:
                    pipe.close()
    except BaseException:
        for process in started:
            process.terminate()
        raise
    finally:
        for process in started:
            process.join()


def _send(pipe: Any, task: int) -> None:
    with contextlib.suppress(
        BrokenPipeError, ConnectionResetError
    ):  # a dead process is found by what it says
        pipe.send(task)


def _serve(work: Callable[[int], Any], pipe: Any) -> None:
    while True:
        try:
            task = pipe.recv()
        except (EOFError, ConnectionResetError):  # no more tasks, or the build was killed
            return
        error = None
        try:
            work(task)
        except Exception as raised:
            error = raised
        try:
            pipe.send(error)
        except BrokenPipeError:
            return
        except Exception:  # one that cannot be sent
            pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))
