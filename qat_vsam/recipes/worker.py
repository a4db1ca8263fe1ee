"""How the processes of a comparison end: by their parent's word, by its death, and never waiting for each other.

Ctrl-C in a terminal reaches every process of the group. Only the parent answers: it sends each worker one SIGTERM, at
which a training writes its checkpoint. A worker that stops leaves at once, for on the way back to its queue it could
wait for ever for a lock that another one took into its end.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from types import FrameType

from qat_vsam.train import Interrupted

SECONDS_TO_STOP = 1.5


@contextmanager
def sigint_blocked() -> Iterator[None]:
    """Processes that are started in the block never see a Ctrl-C; this one sees it after the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM end the block like Ctrl-C does, so that what was begun in it is ended with it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def begin_work() -> None:
    """In a worker, before its first run: SIGTERM cleans up, and the parent's end is one."""
    signal.signal(signal.SIGTERM, _leave)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_stop_with, args=(parent.sentinel,), daemon=True).start()


@contextmanager
def leaving_at_a_stop() -> Iterator[None]:
    """In a worker: a signal that stops the block ends the process, after all that the block cleans up."""
    try:
        yield
    except (Interrupted, SystemExit):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(128 + signal.SIGTERM)


def end_workers(others: Collection[BaseProcess]) -> int:
    """Tell every worker to stop, and end those that are not done with it in time.

    Args:
        others: children of this process that are no workers.

    Returns:
        How many had to be ended.
    """
    workers = [child for child in multiprocessing.active_children() if child not in others]
    for worker in workers:
        worker.terminate()
    deadline = time.monotonic() + SECONDS_TO_STOP
    try:
        for worker in workers:
            worker.join(max(0.0, deadline - time.monotonic()))
    finally:
        late = [worker for worker in workers if worker.is_alive()]
        for worker in late:
            worker.kill()
    return len(late)


def _stop(signum: int, frame: FrameType | None) -> None:
    raise Interrupted(signum)


def _leave(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)


def _stop_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
