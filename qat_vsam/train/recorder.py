"""What the training loop writes and says between two steps: log lines, checkpoints, progress, the stop."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import nn
from torch.optim import Optimizer

from qat_vsam.train.environment import describe_environment, fused_calls
from qat_vsam.train.ledger import CostLedger, Stopwatch
from qat_vsam.train.run_folder import RunFolder
from qat_vsam.train.signals import Interrupted, StopSignals
from qat_vsam.train.state import TrainingState

# A checkpoint costs about as much as a few steps of a small net.
STEPS_WORTH_SAVING = 50


@dataclass(frozen=True)
class Progress:
    """Where a training stands, for a progress bar.

    Attributes:
        kind: "start", "step", "epoch" or "checkpoint".
        step: steps done.
        total_steps: steps in all.
        epoch: the epoch under way, or the last one done, from 1.
        epochs: epochs in all.
        loss: the last one read from the device, None before the first.
        validation_accuracy: of the last validated epoch, in 0..1, or None.
        ledger: the cost so far; it changes as the training goes on.
        remaining_seconds: training time to go at the pace so far, None before the first step.
    """

    kind: str
    step: int
    total_steps: int
    epoch: int
    epochs: int
    loss: float | None
    validation_accuracy: float | None
    ledger: CostLedger
    remaining_seconds: float | None


@dataclass(frozen=True)
class Plan:
    """How long a training is and when it is looked at; see `fit` for the meaning."""

    epochs: int
    steps_per_epoch: int
    log_every: int
    checkpoint_every_steps: int | None
    on_event: Callable[[Progress], None] | None


class Recorder:
    """Keeps the books of one call of `fit`.

    Entering resumes from the run's newest checkpoint, starts the clock and takes over SIGINT and SIGTERM;
    without a run folder nothing is written and the signals are left alone.

    Args:
        state: the training, changed in place.
        run: where to write, or None.
        plan: when to write.
    """

    def __init__(self, state: TrainingState, run: RunFolder | None, plan: Plan) -> None:
        self.state = state
        self.clock = Stopwatch(state.ledger, state.device)
        self.resumed_from: int | None = None
        self._run = run
        self._plan = plan
        self._signals = StopSignals()
        self._loss: float | None = None
        self._saved = 0
        self._fused_before: int | None = None
        self._exits = contextlib.ExitStack()

    def __enter__(self) -> Recorder:
        if self._run is not None:
            self._exits.enter_context(self._signals)
            self._run.record_environment(describe_environment(self.state.device))
            saved = self._run.restore()
            self._fused_before = fused_calls()
            if saved is not None:
                self.state.load_state_dict(saved)
                self.resumed_from = self._saved = self.state.ledger.steps
        self._exits.enter_context(self.clock.training())
        self._tell("start")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exits.close()
        if error is None and self._signals.received is not None:
            # it came after the last look at the signals; everything is saved
            raise Interrupted(self._signals.received)

    def after_step(self, loss: torch.Tensor | None, learning_rate: float) -> None:
        """Log, save and stop, each if it is time.

        Args:
            loss: mean over the batch at the weights before the step, a scalar still on the device; None for a
                step that the optimizer left out.
            learning_rate: of the first group, as the step used it.

        Raises:
            NonFiniteError: at a logged step, the loss is NaN or infinite.
            Interrupted: a signal came; a checkpoint has been written.
        """
        if self._run is not None and self._fused_before is not None:
            # the first step of this process shows which kernels there are
            self._run.record_kernels("fused" if fused_calls() > self._fused_before else "eager")
            self._fused_before = None
        step = self.state.ledger.steps
        if step % self._plan.log_every == 0:
            self._log_step(loss, learning_rate)
        self._tell("step")
        every, ends_epoch = self._plan.checkpoint_every_steps, self.state.batch == self._plan.steps_per_epoch
        due = every is not None and step % every == 0 and not ends_epoch
        self._save_and_stop(due)

    def after_epoch(self, validation_accuracy: float | None) -> None:
        """Log the epoch, write a checkpoint if there is enough to lose, and stop if asked.

        Args:
            validation_accuracy: in 0..1, None if the epoch was not validated.

        Raises:
            NonFiniteError: a loss of the epoch or a weight is NaN or infinite.
            Interrupted: a signal came; a checkpoint has been written.
        """
        self.clock.lap()
        self.state.end_epoch(validation_accuracy)
        ledger = self.state.ledger
        if self._run is not None:
            self._run.log(
                {
                    "kind": "epoch",
                    "epoch": self.state.epoch,
                    "step": ledger.steps,
                    **self.state.last_epoch,
                    "gradient_evaluations": ledger.gradient_evaluations,
                },
                timing={
                    "train_seconds": ledger.train_seconds,
                    "evaluation_seconds": ledger.evaluation_seconds,
                    "images_per_second": ledger.images_per_second,
                    "peak_memory_bytes": ledger.peak_memory_bytes,
                },
            )
        self._tell("epoch")
        every, last = self._plan.checkpoint_every_steps, self.state.epoch == self._plan.epochs
        due = ledger.steps - self._saved >= STEPS_WORTH_SAVING or (every is not None and ledger.steps % every == 0)
        self._save_and_stop(due or last)

    def _log_step(self, loss: torch.Tensor | None, learning_rate: float) -> None:
        if loss is not None:
            self.state.check_finite("loss", loss)
            self._loss = float(loss)
        if self._run is None:
            return
        self.clock.lap()
        ledger = self.state.ledger
        statistics = _statistics(self.state.optimizer, self.state.model)
        self._run.log(
            {
                "kind": "step",
                "step": ledger.steps,
                "epoch": self.state.epoch + 1,
                "loss": None if loss is None else self._loss,
                "lr": learning_rate,
                "gradient_evaluations": ledger.gradient_evaluations,
                # JSON has no NaN: a statistic that does not exist yet is null
                **{name: value if math.isfinite(value) else None for name, value in statistics.items()},
            },
            timing={"train_seconds": ledger.train_seconds, "images_per_second": ledger.images_per_second},
        )

    def _save_and_stop(self, due: bool) -> None:
        # read once: a signal that comes after this line is answered at the next step, with its own checkpoint
        stop = self._signals.received
        if due or stop is not None or self.state.stopped:
            self._save()
        if stop is not None:
            raise Interrupted(stop)

    def _save(self) -> None:
        if self._run is None:
            return
        with self.clock.paused():
            self._run.save(self.state.epoch, self.state.ledger.steps, self.state.state_dict())
        self._saved = self.state.ledger.steps
        self._tell("checkpoint")

    def _tell(self, kind: str) -> None:
        if self._plan.on_event is None:
            return
        ledger, plan = self.state.ledger, self._plan
        total = plan.epochs * plan.steps_per_epoch
        pace = self.clock.seconds() / ledger.steps if ledger.steps else None
        self._plan.on_event(
            Progress(
                kind=kind,
                step=ledger.steps,
                total_steps=total,
                epoch=min(self.state.epoch + (self.state.batch > 0 or kind == "start"), plan.epochs),
                epochs=plan.epochs,
                loss=self._loss,
                validation_accuracy=self.state.last_epoch["validation_accuracy"],
                ledger=ledger,
                remaining_seconds=None if pace is None else pace * (total - ledger.steps),
            )
        )


def _statistics(optimizer: Optimizer, model: nn.Module) -> dict[str, float]:
    """The optimizer's own, else the norm of the gradient that it left behind."""
    own: Callable[[], dict[str, float]] | None = getattr(optimizer, "statistics", None)
    if own is not None:
        return own()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return {"gradient_norm": float(nn.utils.get_total_norm(gradients)) if gradients else math.nan}
