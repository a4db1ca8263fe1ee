"""What a training has cost so far."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch


@dataclass
class CostLedger:
    """Counts and seconds of a training, over all its resumptions.

    With b rows in the batch of a step and passes over r_1, r_2, ... of them, the step adds
    (r_1 + r_2 + ...) / b gradient evaluations and as many forwards as there were passes: a step of SGD costs
    1, a step of SAM 2.

    Attributes:
        gradient_evaluations: passes forward and backward, weighted by the share of the batch they saw.
        forwards: passes forward while training, of any share.
        steps: updates of the weights.
        images: training images consumed, one batch a step however often it is passed.
        train_seconds: wall-clock seconds without evaluation and without writing checkpoints.
        evaluation_seconds: wall-clock seconds of validation.
        peak_memory_bytes: the process's largest resident memory on the CPU, of allocated memory on a GPU.

    Example:
        >>> ledger = CostLedger()
        >>> ledger.count_step(batch=64, passes=[64, 16])
        >>> ledger.gradient_evaluations, ledger.forwards, ledger.images
        (1.25, 2, 64)
    """

    gradient_evaluations: float = 0.0
    forwards: int = 0
    steps: int = 0
    images: int = 0
    train_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    peak_memory_bytes: int = 0

    def count_step(self, batch: int, passes: list[int]) -> None:
        """Book one step.

        Args:
            batch: rows in the batch.
            passes: rows in each pass of the step.
        """
        # one division a step: sums of shares such as 12/50 + 38/50 would drift
        self.gradient_evaluations += sum(passes) / batch
        self.forwards += len(passes)
        self.steps += 1
        self.images += batch

    @property
    def images_per_second(self) -> float:
        """Training images per second of training, 0 before the first."""
        return self.images / self.train_seconds if self.train_seconds > 0 else 0.0

    def to_dict(self) -> dict[str, float]:
        """All attributes and `images_per_second`, as plain numbers."""
        return self.state_dict() | {"images_per_second": self.images_per_second}

    def state_dict(self) -> dict[str, float]:
        """The attributes, as plain numbers."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from `state`."""
        for field in fields(self):
            setattr(self, field.name, state[field.name])


class Stopwatch:
    """Books the wall-clock seconds of a training into a ledger.

    Args:
        ledger: where the seconds go.
        device: waited for when the clock starts and stops, else a GPU's queue would be timed, not its work.
    """

    def __init__(self, ledger: CostLedger, device: torch.device) -> None:
        self._ledger = ledger
        self._device = device
        self._started: float | None = None

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Book the time of the block as training."""
        self._start()
        try:
            yield
        finally:
            self.lap()
            self._started = None

    @contextlib.contextmanager
    def paused(self, *, evaluation: bool = False) -> Iterator[None]:
        """Inside `training`: leave the time of the block out, or book it as evaluation."""
        self.lap()
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._start()
            if evaluation:
                self._ledger.evaluation_seconds += time.perf_counter() - begin

    def lap(self) -> None:
        """Book the training time up to now."""
        self._synchronize()
        now = time.perf_counter()
        if self._started is not None:
            self._ledger.train_seconds += now - self._started
        self._started = now
        self._ledger.peak_memory_bytes = max(self._ledger.peak_memory_bytes, peak_memory_bytes(self._device))

    def seconds(self) -> float:
        """Training seconds up to now, without waiting for the device and without booking them."""
        running = 0.0 if self._started is None else time.perf_counter() - self._started
        return self._ledger.train_seconds + running

    def _start(self) -> None:
        self._synchronize()
        self._started = time.perf_counter()

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory this process has held: allocated on a GPU, resident on the CPU.

    Example:
        >>> peak_memory_bytes(torch.device("cpu")) > 1_000_000
        True
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    kibibytes_or_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kibibytes_or_bytes if sys.platform == "darwin" else kibibytes_or_bytes * 1024
