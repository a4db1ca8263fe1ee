"""A job drawn in the terminal: a bar with time left, accuracy and cost; without one, plain lines."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar

from qat_vsam.recipes.events import Listener
from qat_vsam.train import Progress


class ConsoleListener(Listener):
    """Draws a job while its block runs.

    Example:
        >>> with ConsoleListener() as listener:
        ...     listener.say("calibrating")
        calibrating
    """

    def __init__(self) -> None:
        self._console = Console(soft_wrap=True, highlight=False)
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._started = time.monotonic()

    def __enter__(self) -> ConsoleListener:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text, markup=False)

    def progress(self, progress: Progress) -> None:
        """Move the bar, or print a line an epoch."""
        ledger = progress.ledger
        cost = f"{ledger.gradient_evaluations / max(1, ledger.steps):.2f} gradients a step"
        accuracy = "" if progress.validation_accuracy is None else f"validation {progress.validation_accuracy:.2%}, "
        text = f"epoch {progress.epoch}/{progress.epochs}, {accuracy}{cost}"
        if self._console.is_terminal:
            self._draw(progress.step, progress.total_steps, text)
        elif progress.kind == "epoch":
            left = progress.remaining_seconds or 0.0
            loss = "" if progress.loss is None else f", loss {progress.loss:.4f}"
            self.say(f"{text}{loss}, {ledger.images_per_second:.0f} images/s, {left:.0f} s left")

    def grid(self, done: int, total: int, name: str) -> None:
        """Move the bar of a comparison, or print a line a run."""
        if self._console.is_terminal:
            self._draw(done, total, f"runs ({name})")
        else:
            self.say(f"{done}/{total} {name}, {time.monotonic() - self._started:.0f} s")

    def _draw(self, done: int, total: int, text: str) -> None:
        if self._bar is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
            )
            self._bar = Bar(*columns, TextColumn("left"), TimeRemainingColumn(), console=self._console)
            self._task = self._bar.add_task(text, total=total)
            self._bar.start()
        if self._task is not None:
            self._bar.update(self._task, completed=done, total=total, description=text)
