"""A small classification problem: a network with closures, which is a function of its weights for the twins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

BATCH = 12


class QuantizedLinear(nn.Linear):
    """A layer with a coarse weight quantizer (grid 1/4, straight-through) and an offset behind it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.weight_offset: Tensor | None = None

    def weight_step_size(self) -> Tensor:
        return torch.full((), 0.25, dtype=self.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        quantized = self.weight + ((self.weight * 4).round() / 4 - self.weight).detach()
        used = quantized if self.weight_offset is None else quantized + self.weight_offset
        return F.linear(x, used, self.bias)


class Watcher(nn.Module):
    """Counts forward passes unless told to stand still."""

    def __init__(self) -> None:
        super().__init__()
        self.updates_state = True
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += self.updates_state
        return x


class Problem:
    """A network and eight batches, which the steps take in turn.

    `forwards` and `passes` count what the network really does: forward passes, and backward passes weighted
    by their share of the batch, the latter by a hook on its output.
    """

    def __init__(self, model: nn.Module, inputs: int, seed: int, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.model = model.to(dtype)
        self.x = torch.randn(8, BATCH, inputs, generator=generator, dtype=dtype)
        self.y = torch.randint(0, 3, (8, BATCH), generator=generator)
        self.turn = 0
        self.passes = 0.0
        self.forwards = 0

    @property
    def weights(self) -> list[Tensor]:
        return list(self.model.parameters())

    def copies(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.weights]

    def row_losses(self, rows: Any = slice(None)) -> Tensor:
        logits = self.model(self.x[self.turn % 8][rows])
        self.forwards += 1
        if logits.requires_grad:
            logits.register_hook(self._count_backward)
        return F.cross_entropy(logits, self.y[self.turn % 8][rows], reduction="none")

    def loss(self, rows: Any = slice(None)) -> Tensor:
        return self.row_losses(rows).mean()

    def closure(self, optimizer: Optimizer) -> Callable[..., Any]:
        """With the losses of the rows too, where the optimizer's method needs them."""

        def closure(rows: slice = slice(None)) -> Tensor:
            optimizer.zero_grad()
            loss = self.loss(rows)
            loss.backward()
            return loss

        def closure_of_rows(rows: Any = slice(None), backward: bool = True) -> tuple[Tensor, Tensor]:
            optimizer.zero_grad()
            losses = self.row_losses(rows)
            if backward:
                losses.mean().backward()
            return losses.mean(), losses.detach()

        method = getattr(optimizer, "method", None)
        return closure_of_rows if getattr(method, "needs_row_losses", False) else closure

    def step(self, optimizer: Optimizer, batch_size: int | None = BATCH) -> Tensor:
        """One step on the batch whose turn it is; a plain torch optimizer works too."""
        options = {"batch_size": batch_size} if hasattr(optimizer, "gradient_evaluations") else {}
        loss = optimizer.step(self.closure(optimizer), **options)
        self.turn += 1
        return loss

    def gradient(self, w: list[Tensor], rows: Any) -> list[Tensor]:
        """For the twins: the gradients at `w`, without touching the network."""
        leaves = [wi.clone().requires_grad_() for wi in w]
        return list(torch.autograd.grad(self._losses_at(leaves, rows).mean(), leaves))

    def loss_at(self, w: list[Tensor], rows: Any) -> float:
        """For VSAM's twin: the mean loss of some rows at `w`."""
        with torch.no_grad():
            return self._losses_at(w, rows).mean().item()

    def losses_at(self, w: list[Tensor]) -> list[float]:
        """For ESAM's twin: the losses of the rows at `w`."""
        with torch.no_grad():
            return self._losses_at(w, slice(None)).tolist()

    def gradients_behind(self, w: list[Tensor], e: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """For SAQ's twin: with Q(w) + e as weights, the gradients at w and at Q(w)."""
        leaves = [wi.clone().requires_grad_() for wi in w]
        offsets = [ei.clone().requires_grad_() for ei in e]
        quantized = {
            f"{name}.weight": layer for name, layer in self.model.named_modules() if isinstance(layer, QuantizedLinear)
        }
        used = []
        for (name, _), leaf, offset in zip(self.model.named_parameters(), leaves, offsets, strict=True):
            used.append(leaf if name in quantized else leaf + offset)
            if name in quantized:
                quantized[name].weight_offset = offset
        try:
            found = torch.autograd.grad(self._losses_at(used, slice(None)).mean(), [*leaves, *offsets])
        finally:
            for layer in quantized.values():
                layer.weight_offset = None
        return list(found[: len(w)]), list(found[len(w) :])

    def _losses_at(self, w: list[Tensor], rows: Any) -> Tensor:
        names = [name for name, _ in self.model.named_parameters()]
        logits = functional_call(self.model, dict(zip(names, w, strict=True)), (self.x[self.turn % 8][rows],))
        return F.cross_entropy(logits, self.y[self.turn % 8][rows], reduction="none")

    def _count_backward(self, grad: Tensor) -> None:
        self.passes += len(grad) / BATCH


def tensors_of(optimizer: Optimizer) -> list[Tensor]:
    """Copies of all tensors of its state."""
    return [t.clone() for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
