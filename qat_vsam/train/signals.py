"""SIGINT and SIGTERM ask for a stop at the next step; a second one stops at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """A signal stopped the training after a checkpoint was written.

    A `KeyboardInterrupt`, so that no `except Exception` around an arm of a grid takes it for a failed arm.

    Args:
        signum: the signal's number.

    Example:
        >>> Interrupted(signal.SIGTERM).exit_code
        143
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}; the same command goes on from here")
        self.signum = int(signum)

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that the signal ended: 128 + the signal's number."""
        return 128 + self.signum


class StopSignals:
    """Notes the first SIGINT or SIGTERM while the block runs.

    After the first signal a second SIGINT raises `KeyboardInterrupt` wherever the program is, and a second
    SIGTERM ends the process. Leaving the block puts back the handlers that were there before. Python delivers
    signals to the main thread only; in another thread the block does nothing.

    Example:
        >>> import os
        >>> with StopSignals() as signals:
        ...     os.kill(os.getpid(), signal.SIGTERM)
        ...     signals.received == signal.SIGTERM
        True
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._before.items():
            # None stands for a handler that was not installed from Python and cannot be put back
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        self._before.clear()

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.received = signum
        # the handlers from before are no use here: a background job begins with SIGINT ignored
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
