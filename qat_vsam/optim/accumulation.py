"""A batch that is too large for the memory: the closure runs through micro-batches, in every pass the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from qat_vsam.errors import InputError, explain


class MicroBatches:
    r"""A closure that replays micro-batches, and gives the gradient of the batch that they make together.

        L = sum_i n_i L_i / sum_i n_i,      n_i the rows and L_i the mean loss of micro-batch i

    Handed to `step` with `batch_size=len(closure)`, a part of the batch is a number of whole micro-batches, of
    which one is enough: none is cut. Batch norm sees each micro-batch by itself, and its statistics move once
    for each, as in plain accumulation.

    Args:
        optimizer: Whose gradients are zeroed before each pass.
        batches: The micro-batches; kept as long as the closure, since every pass needs them.
        loss: Maps a micro-batch to its mean loss, with a graph.
        rows: n_i of a micro-batch; by default the length of the batch, or of its first entry.
        backward: What computes the gradients of a loss. Under a GradScaler
            `lambda loss: scaler.scale(loss).backward()`, with accelerate `accelerator.backward`.
        no_sync: Entered for all micro-batches of a pass but the last. With DistributedDataParallel
            `model.no_sync`: gradients then travel once a pass.

    Raises:
        InputError: No micro-batches, or one without rows.

    Example:
        >>> from qat_vsam.optim import VSAM
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = VSAM(model.parameters(), torch.optim.SGD, model=model, lr=0.1)
        >>> batches = [(torch.randn(4, 3), torch.randn(4, 1)) for _ in range(8)]
        >>> closure = MicroBatches(optimizer, batches, lambda b: torch.nn.functional.mse_loss(model(b[0]), b[1]))
        >>> loss = optimizer.step(closure, batch_size=len(closure))
    """

    smallest_part = 1

    def __init__(
        self,
        optimizer: Optimizer,
        batches: Sequence[Any],
        loss: Callable[[Any], Tensor],
        *,
        rows: Callable[[Any], float] | None = None,
        backward: Callable[[Tensor], None] = Tensor.backward,
        no_sync: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> None:
        self.optimizer = optimizer
        self.batches = list(batches)
        self.loss = loss
        self.backward = backward
        self.no_sync = no_sync or nullcontext
        self.sizes = [float((rows or _rows)(batch)) for batch in self.batches]
        if not self.batches or min(self.sizes) <= 0:
            got = f"micro-batches of {[int(size) for size in self.sizes]} rows"
            raise InputError(explain("batches", got, "one or more, none of them empty", "leave empty batches out"))

    def __len__(self) -> int:
        """The number of micro-batches."""
        return len(self.batches)

    def __call__(self, rows: slice | Tensor = slice(None), backward: bool = True) -> Any:
        """The mean loss of the micro-batches that `rows` names, its gradient in `.grad`.

        Args:
            rows: A slice over the micro-batches, or their numbers.
            backward: Whether to compute gradients.

        Returns:
            The loss for all micro-batches, (loss, rows in them) for a part of them; (loss, losses of the
            micro-batches) for an optimizer whose method chooses by them.
        """
        order = range(len(self))
        chosen = order[rows] if isinstance(rows, slice) else [order[i] for i in rows.tolist()]
        total = sum(self.sizes[i] for i in chosen)
        shares = [self.sizes[i] / total for i in chosen]
        losses = []
        if backward:
            self.optimizer.zero_grad()
        for i, share in zip(chosen, shares, strict=True):
            with nullcontext() if i == chosen[-1] else self.no_sync():
                loss = self.loss(self.batches[i])
                if backward:
                    self.backward(loss * share)
            losses.append(loss.detach())
        mean = torch.stack([loss * share for loss, share in zip(losses, shares, strict=True)]).sum()
        if getattr(getattr(self.optimizer, "method", None), "needs_row_losses", False):
            return mean, torch.stack(losses)
        return mean if len(chosen) == len(self) else (mean, total)


def _rows(batch: Any) -> int:
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    return len(batch) if isinstance(batch, Tensor) else len(batch[0])
