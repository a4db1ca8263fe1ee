"""A small classification problem, as a network with closures and as a function for the reference twins."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

BATCH = 12


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

    def loss(self, rows: slice = slice(None)) -> Tensor:
        x, y = self.x[self.turn % 8][rows], self.y[self.turn % 8][rows]
        logits = self.model(x)
        self.forwards += 1
        logits.register_hook(self._count_backward)
        return F.cross_entropy(logits, y)

    def closure(self, optimizer: Optimizer) -> Callable[..., Tensor]:
        def closure(rows: slice = slice(None)) -> Tensor:
            optimizer.zero_grad()
            loss = self.loss(rows)
            loss.backward()
            return loss

        return closure

    def step(self, optimizer: Optimizer, batch_size: int | None = BATCH) -> Tensor:
        """One step on the batch whose turn it is; a plain torch optimizer works too."""
        options = {"batch_size": batch_size} if hasattr(optimizer, "gradient_evaluations") else {}
        loss = optimizer.step(self.closure(optimizer), **options)
        self.turn += 1
        return loss

    def gradient(self, w: list[Tensor], rows: slice) -> list[Tensor]:
        """For the twins: the gradients at `w`, without touching the network."""
        leaves = [wi.clone().requires_grad_() for wi in w]
        names = [name for name, _ in self.model.named_parameters()]
        x, y = self.x[self.turn % 8][rows], self.y[self.turn % 8][rows]
        logits = functional_call(self.model, dict(zip(names, leaves, strict=True)), (x,))
        return list(torch.autograd.grad(F.cross_entropy(logits, y), leaves))

    def _count_backward(self, grad: Tensor) -> None:
        self.passes += len(grad) / BATCH


@pytest.fixture
def problem() -> Callable[..., Problem]:
    """Builds a `Problem`: problem(seed, dtype, batch_norm, dropout)."""

    def build(
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
        batch_norm: bool = False,
        dropout: float = 0.0,
    ) -> Problem:
        torch.manual_seed(seed)
        layers: list[nn.Module] = [nn.Linear(5, 8)]
        if batch_norm:
            layers.append(nn.BatchNorm1d(8))
        layers.append(nn.Tanh())
        if dropout:
            layers.append(nn.Dropout(dropout))
        layers.append(nn.Linear(8, 3))
        return Problem(nn.Sequential(*layers), inputs=5, seed=seed, dtype=dtype)

    return build
