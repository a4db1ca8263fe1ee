"""Everything that determines the rest of a training."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from qat_vsam.errors import CheckpointError, NonFiniteError, explain
from qat_vsam.train.average import moving_average
from qat_vsam.train.ledger import CostLedger

_KEYS = (
    "model",
    "optimizer",
    "lr_scheduler",
    "ledger",
    "epoch",
    "batch",
    "loss_sum",
    "loss_rows",
    "last_epoch",
    "random_cpu",
    "random_device",
)


class TrainingState:
    """A training between two steps, that can be written down and taken up again bit for bit.

    Args:
        model: the net, on `device`.
        optimizer: with its base's momentum and its schedule in one state_dict.
        lr_scheduler: any object with `step`, `state_dict` and `load_state_dict`, or None.
        device: where the model is and random numbers are drawn, beside the CPU.
        ema: decay of `moving_average`, or None.

    Attributes:
        average: the moving average of the weights, or None.
        epoch: whole epochs done.
        batch: steps done in the epoch under way.
        ledger: the cost so far; its `steps` is the position in the whole training.
        last_epoch: `train_loss` and `validation_accuracy` of the last whole epoch.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        lr_scheduler: Any,
        device: torch.device,
        ema: float | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.device = device
        self.average = None if ema is None else moving_average(model, ema)
        self.ledger = CostLedger()
        self.epoch = 0
        self.batch = 0
        self.last_epoch: dict[str, float | None] = {"train_loss": None, "validation_accuracy": None}
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self._loss_rows = 0
        self._skipped = getattr(optimizer, "skipped", 0)
        # a mask may hold infinities on purpose: what is not finite at the start need not become so
        self._unwatched = set(nonfinite_names(model))

    @property
    def stopped(self) -> bool:
        """Whether the optimizer makes no more steps, because a gradient was NaN or infinite."""
        return bool(getattr(self.optimizer, "stopped", False))

    @property
    def judged(self) -> nn.Module:
        """The net that is validated and kept at the end: the average where there is one."""
        return self.model if self.average is None else self.average.module

    def count_step(self, loss: torch.Tensor, rows: int, passes: list[int]) -> bool:
        """Book a step of the epoch under way, without waiting for the device; the average takes it in.

        The loss of a step that the optimizer left out counts for nothing.

        Args:
            loss: mean over the batch, a scalar on the device.
            rows: the batch's size.
            passes: rows in each forward and backward pass.

        Returns:
            Whether the optimizer made the step.
        """
        self.ledger.count_step(rows, passes)
        self.batch += 1
        skipped_before, self._skipped = self._skipped, getattr(self.optimizer, "skipped", 0)
        made: bool = self._skipped == skipped_before
        if made:
            self._loss_sum += loss.double() * rows
            self._loss_rows += rows
        if self.average is not None:
            self.average.update_parameters(self.model)
        return made

    def end_epoch(self, validation_accuracy: float | None) -> None:
        """Move to the start of the next epoch."""
        self.last_epoch = {"train_loss": self.train_loss(), "validation_accuracy": validation_accuracy}
        self.epoch += 1
        self.batch = 0
        self._loss_sum.zero_()
        self._loss_rows = 0

    def train_loss(self) -> float:
        """Mean loss of the rows seen in the epoch under way, each before its step; 0 before the first.

        Raises:
            NonFiniteError: one of the losses was NaN or infinite.
        """
        mean = float(self._loss_sum) / max(self._loss_rows, 1)
        self.check_finite("loss", torch.tensor(mean))
        return mean

    def check_finite(self, what: str, values: torch.Tensor) -> None:
        """Refuse values that no training recovers from.

        Raises:
            NonFiniteError: an element is NaN or infinite.
        """
        if not bool(values.isfinite().all()):
            raise NonFiniteError(
                explain(
                    f"{what} at step {self.ledger.steps}",
                    "nan or infinity",
                    "finite numbers",
                    "lower the learning rate or rho, warm up longer, or look for bad inputs; "
                    "the checkpoints are from before and stay whole",
                )
            )

    def check_model(self) -> None:
        """Refuse a net whose weights or buffers became NaN or infinite; in training mode its loss need not show it.

        Raises:
            NonFiniteError: naming the first of them.
        """
        for net in (self.model,) if self.average is None else (self.model, self.average.module):
            broken = [name for name in nonfinite_names(net) if name not in self._unwatched]
            if broken:
                others = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
                self.check_finite(f"{broken[0]}{others}", torch.tensor(torch.nan))

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only.

        Raises:
            NonFiniteError: a weight, a running statistic or a loss of this epoch is NaN or infinite.
        """
        self.train_loss()
        self.check_model()
        on_gpu = self.device.type == "cuda"
        average = {} if self.average is None else {"average": self.average.module.state_dict()}
        return {
            "model": self.model.state_dict(),
            **average,
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": None if self.lr_scheduler is None else self.lr_scheduler.state_dict(),
            "ledger": self.ledger.state_dict(),
            "epoch": self.epoch,
            "batch": self.batch,
            "loss_sum": self._loss_sum,
            "loss_rows": self._loss_rows,
            "last_epoch": self.last_epoch,
            "random_cpu": torch.get_rng_state(),
            "random_device": torch.cuda.get_rng_state(self.device) if on_gpu else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the training up where `state` left it, random generators included.

        Raises:
            CheckpointError: the state is of another model, optimizer or scheduler.
        """
        keys = {*_KEYS} if self.average is None else {*_KEYS, "average"}
        if set(state) != keys:
            raise _refusal(f"entries {sorted(state)}", f"entries {sorted(keys)}")
        if (state["lr_scheduler"] is None) != (self.lr_scheduler is None):
            raise _refusal("a checkpoint with another lr_scheduler", "the scheduler of this run")
        try:
            self.model.load_state_dict(state["model"])
            if self.average is not None:
                self.average.module.load_state_dict(state["average"])
                self.average.n_averaged.fill_(state["ledger"]["steps"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.lr_scheduler is not None:
                self.lr_scheduler.load_state_dict(state["lr_scheduler"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise _refusal(f"a checkpoint that does not fit: {error}", "this model and optimizer") from error
        self.ledger.load_state_dict(state["ledger"])
        self.epoch, self.batch = state["epoch"], state["batch"]
        self._loss_sum.copy_(state["loss_sum"])
        self._loss_rows = state["loss_rows"]
        self._skipped = getattr(self.optimizer, "skipped", 0)
        self.last_epoch = dict(state["last_epoch"])
        torch.set_rng_state(state["random_cpu"])
        if self.device.type == "cuda" and state["random_device"] is not None:
            torch.cuda.set_rng_state(state["random_device"], self.device)


def nonfinite_names(model: nn.Module) -> list[str]:
    """The parameters and buffers that hold a NaN or an infinity, found with one wait for the device.

    Example:
        >>> norm = nn.BatchNorm2d(2)
        >>> _ = norm.running_var.fill_(torch.inf)
        >>> nonfinite_names(norm)
        ['running_var']
    """
    named = [*model.named_parameters(), *model.named_buffers()]
    watched = [(name, value.detach()) for name, value in named if value.is_floating_point() or value.is_complex()]
    if not watched:
        return []
    finite = torch.stack([value.isfinite().all() for _, value in watched]).tolist()
    return [name for (name, _), whole in zip(watched, finite, strict=True) if not whole]


def _refusal(got: str, expected: str) -> CheckpointError:
    return CheckpointError(explain("checkpoint", got, expected, "start the run in another folder"))
