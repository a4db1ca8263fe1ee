"""The training loop.

for each batch (x, y):
    loss = optimizer.step(closure, batch_size=len(x))      the optimizer decides how many passes it pays for
    lr_scheduler.step()
after each epoch: validate, log, write a checkpoint
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from qat_vsam.errors import ConfigError, explain
from qat_vsam.evaluate import accuracy
from qat_vsam.quant import freeze_batch_norm
from qat_vsam.train.ledger import CostLedger
from qat_vsam.train.recorder import Plan, Progress, Recorder
from qat_vsam.train.run_folder import RunFolder
from qat_vsam.train.state import TrainingState

Loss = Callable[[Tensor, Tensor], Tensor]


class EpochBatches(Protocol):
    """Batches whose order is a function of the epoch and step alone, such as `qat_vsam.data.Batches`."""

    def __len__(self) -> int:
        """Steps an epoch."""
        ...

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of epoch 0."""
        ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches (x, y) of `epoch`, counted from 0, from step `start` on."""
        ...


@dataclass(frozen=True)
class FitResult:
    """What `fit` returns; the trained weights, or their average, are in the model.

    Attributes:
        steps: updates of the weights, all resumptions included.
        epochs: epochs done.
        train_loss: mean loss over the last epoch, each batch before its step.
        validation_accuracy: of the last epoch, in 0..1, or None.
        ledger: what it cost.
        resumed_from: the step of the checkpoint that this call went on from, or None.
        stopped: whether the optimizer ended the run early, at a gradient that was NaN or infinite.
    """

    steps: int
    epochs: int
    train_loss: float | None
    validation_accuracy: float | None
    ledger: CostLedger
    resumed_from: int | None
    stopped: bool = False


def fit(
    model: nn.Module,
    optimizer: Optimizer,
    batches: EpochBatches,
    *,
    epochs: int,
    run: RunFolder | None = None,
    lr_scheduler: Any = None,
    loss: Loss = functional.cross_entropy,
    validation: EpochBatches | None = None,
    validate_every: int = 1,
    device: str | torch.device = "cpu",
    amp: str | None = None,
    ema: float | None = None,
    training_mode: bool = True,
    log_every: int = 10,
    checkpoint_every_steps: int | None = None,
    on_event: Callable[[Progress], None] | None = None,
) -> FitResult:
    """Train `model`, or go on with the training that `run` holds.

    With a run folder the training is written down after an epoch (of short ones after those that end at least 50
    steps later), every `checkpoint_every_steps` steps and when SIGINT or SIGTERM asks for a stop; called again with
    the same arguments it goes on from there and ends in the same bits as an undisturbed training with the same
    thread count; on a GPU as far as its kernels repeat themselves (cuDNN is asked to).

    The optimizer gets `step(closure, batch_size=b)` if it has `gradient_evaluations`, else `step(closure)`.
    `closure(rows)` leaves the gradient of the mean loss over those rows of the batch in `.grad`.

    An optimizer whose attribute `stopped` turns true (`nonfinite="stop"`) ends the run: a checkpoint is written,
    the rest of the epochs is left out, and the same call made again leaves it there.

    Args:
        model: the net, already on `device`.
        optimizer: any `torch.optim.Optimizer` over the model's parameters.
        batches: training batches of (x, y), x of shape (b, ...), y of shape (b,).
        epochs: passes over `batches`.
        run: where to log and keep checkpoints; None keeps nothing and leaves the signals alone.
        lr_scheduler: stepped after every optimizer step.
        loss: maps logits of shape (b, classes) and y to the mean loss, a scalar.
        validation: batches that the model is judged on, in float32 and apart from the training clock.
        training_mode: False trains the net as it will be used: nothing is dropped, and norms keep their running
            statistics, which stand still.
        validate_every: epochs between two validations; the last epoch is always validated.
        device: where the batches go.
        amp: "bf16" runs forward and loss under autocast; None keeps float32.
        ema: decay per step of a moving average of the weights, which is validated in the model's place and is
            in the model at the end; see `moving_average`. None averages nothing.
        log_every: steps between two lines of the log, the only steps that wait for the device.
        checkpoint_every_steps: None for checkpoints at the ends of epochs only.
        on_event: called with a `Progress` after each step, epoch and checkpoint.

    Raises:
        ConfigError: an option is out of its range.
        NonFiniteError: a loss or a weight became NaN or infinite; the checkpoints are from before.
        CheckpointError: a checkpoint cannot be written, or is of another model.
        RunFolderError: a log cannot be written.
        Interrupted: a signal came; a checkpoint has been written.

    Example:
        >>> class TwoBatches:
        ...     def __len__(self):
        ...         return 2
        ...     def epoch(self, epoch, start=0):
        ...         for step in range(start, 2):
        ...             yield torch.full((4, 3), step + 1.0), torch.tensor([0, 1, 0, 1])
        >>> model = nn.Linear(3, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> result = fit(model, optimizer, TwoBatches(), epochs=3)
        >>> result.steps, result.ledger.gradient_evaluations
        (6, 6.0)
    """
    _check_options(
        epochs=epochs,
        validate_every=validate_every,
        log_every=log_every,
        checkpoint_every_steps=checkpoint_every_steps,
    )
    if amp not in (None, "bf16"):
        raise ConfigError(explain("amp", repr(amp), "bf16 or nothing", "choose one of them"))
    state = TrainingState(model, optimizer, lr_scheduler, torch.device(device), ema)
    plan = Plan(epochs, len(batches), log_every, checkpoint_every_steps, on_event)
    repeatable = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
    with repeatable, Recorder(state, run, plan) as recorder:
        while state.epoch < epochs and not state.stopped:
            model.train(training_mode)
            freeze_batch_norm(model, state.ledger.steps)
            for x, y in batches.epoch(state.epoch, state.batch):
                x, y = x.to(state.device, non_blocking=True), y.to(state.device, non_blocking=True)
                learning_rate = float(optimizer.param_groups[0]["lr"])
                value, passes = training_step(model, optimizer, loss, x, y, amp)
                if lr_scheduler is not None:
                    lr_scheduler.step()
                made = state.count_step(value, len(x), passes)
                freeze_batch_norm(model, state.ledger.steps)
                recorder.after_step(value if made else None, learning_rate)
                if state.stopped:
                    break
            else:
                done, validation_accuracy = state.epoch + 1, None
                if validation is not None and (done % validate_every == 0 or done == epochs):
                    with recorder.clock.paused(evaluation=True):
                        validation_accuracy = accuracy(state.judged, validation, state.device).value
                recorder.after_epoch(validation_accuracy)
    if state.judged is not model:
        model.load_state_dict(state.judged.state_dict())
    return FitResult(
        steps=state.ledger.steps,
        epochs=state.epoch,
        ledger=state.ledger,
        resumed_from=recorder.resumed_from,
        stopped=state.stopped,
        **state.last_epoch,
    )


def training_step(
    model: nn.Module, optimizer: Optimizer, loss: Loss, x: Tensor, y: Tensor, amp: str | None
) -> tuple[Tensor, list[int]]:
    """One step of the optimizer: the loss at the weights before it, and the rows of each pass it made."""
    passes: list[int] = []
    wants_row_losses = getattr(getattr(optimizer, "method", None), "needs_row_losses", False)

    def closure(rows: slice | Tensor = slice(None), backward: bool = True) -> Tensor | tuple[Tensor, Tensor]:
        if backward:
            optimizer.zero_grad()
        targets = y[rows]
        # autocast caches the weights it casts: a context per pass, because the weights move between passes
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=amp == "bf16"):
            logits = model(x[rows])
            value = loss(logits, targets)
        if backward:
            torch.autograd.backward(value)
        # a pass forward only is booked as one over no rows
        passes.append(len(targets) if backward else 0)
        return (value, row_losses(loss, logits.detach(), targets)) if wants_row_losses else value

    step: Any = optimizer.step
    in_parts = hasattr(optimizer, "gradient_evaluations")
    value: Tensor = step(closure, batch_size=len(x)) if in_parts else step(closure)
    return value.detach(), passes


def row_losses(loss: Loss, logits: Tensor, targets: Tensor) -> Tensor:
    """The loss of each row, shape (b,), of a loss that is defined as a mean over rows.

    Args:
        loss: maps logits of shape (b, classes) and targets of shape (b,) to their mean loss.
        logits: of shape (b, classes).
        targets: of shape (b,).

    Example:
        >>> row_losses(functional.cross_entropy, torch.zeros(3, 2), torch.tensor([0, 1, 1]))
        tensor([0.6931, 0.6931, 0.6931])
    """
    of_one_row = torch.vmap(lambda row, target: loss(row.unsqueeze(0), target.unsqueeze(0)))
    each: Tensor = of_one_row(logits, targets)
    return each


def _check_options(**options: int | None) -> None:
    for name, value in options.items():
        if value is not None and value < 1:
            raise ConfigError(explain(name, value, "at least 1", "choose a larger number"))
