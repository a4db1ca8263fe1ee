r"""Slow twins of the optimizers, in the papers' letters: loops over tensors, Python numbers, nothing clever.

The fast ones are tested to equal these. A twin is handed `gradient(w, rows)`, the gradients of the loss at
the weights `w` (a list of tensors) on some rows of the batch, and changes `w` in place by SGD with momentum and
weight decay. Nothing is shared with the fast code but the uniform numbers, which are handed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

Tensors = list[Tensor]
Gradient = Callable[[Tensors, Any], Tensors]
Loss = Callable[[Tensors, Any], float]
Uniform = Callable[[int], float]
ALL = slice(None)


def norm(x: Tensors) -> float:
    """L2 norm of all tensors together.

    Example:
        >>> import torch
        >>> norm([torch.tensor([3.0]), torch.tensor([4.0])])
        5.0
    """
    return math.sqrt(sum(float((t**2).sum()) for t in x))


def perturbed(w: Tensors, g: Tensors, rho: float) -> Tensors:
    """w + e with e = rho g / (|g| + 1e-12)."""
    size = norm(g) + 1e-12
    return [wi + rho * gi / size for wi, gi in zip(w, g, strict=True)]


def dot(x: Tensors, y: Tensors) -> float:
    """Scalar product of all tensors together."""
    return sum(float((xi * yi).sum()) for xi, yi in zip(x, y, strict=True))


def plus(a: float, x: Tensors, b: float, y: Tensors) -> Tensors:
    """a x + b y."""
    return [a * xi + b * yi for xi, yi in zip(x, y, strict=True)]


class ReferenceSAM:
    """SAM with SGD as base. Reference: arXiv 2010.01412.

    Args:
        w: The weights, changed in place.
        gradient: The gradients of the loss at given weights on given rows.
        rho, lr, momentum, weight_decay: As usual.
    """

    def __init__(
        self,
        w: Tensors,
        gradient: Gradient,
        *,
        rho: float = 0.05,
        lr: float = 0.1,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        self.w = w
        self.gradient = gradient
        self.rho = rho
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.velocity: Tensors | None = None

    def step(self) -> None:
        """g; e; g_s at w + e; w <- w - lr g_s."""
        g = self.gradient(self.w, ALL)
        g_s = self.gradient(perturbed(self.w, g, self.rho), ALL)
        self.descend(g_s)

    def descend(self, d: Tensors) -> None:
        """SGD's step along d."""
        d = plus(1, d, self.weight_decay, self.w)
        self.velocity = d if self.velocity is None else plus(self.momentum, self.velocity, 1, d)
        for wi, vi in zip(self.w, self.velocity, strict=True):
            wi -= self.lr * vi
