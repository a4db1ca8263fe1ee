"""Twins of the members that differ from SAM in where the gradient is taken."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from qat_vsam.optim.reference.base import ALL, Gradient, ReferenceSAM, Tensors, Uniform, norm, perturbed, plus


class ReferenceASAM(ReferenceSAM):
    """e = rho T^2 g / |T g|, T = |w| + eta on weights and 1 on biases. Reference: arXiv 2102.11600.

    Args:
        w, gradient, **sgd: As for `ReferenceSAM`.
        eta: As in the paper.
    """

    def __init__(self, w: Tensors, gradient: Gradient, *, eta: float = 0.01, **sgd: Any) -> None:
        super().__init__(w, gradient, **sgd)
        self.eta = eta

    def step(self) -> None:
        """g; e; g_s at w + e; w <- w - lr g_s."""
        g = self.gradient(self.w, ALL)
        T = [wi.abs() + self.eta if wi.dim() > 1 else torch.ones_like(wi) for wi in self.w]
        Tg = [Ti * gi for Ti, gi in zip(T, g, strict=True)]
        TTg = [Ti * Tgi for Ti, Tgi in zip(T, Tg, strict=True)]
        there = plus(1, self.w, self.rho / (norm(Tg) + 1e-12), TTg)
        self.descend(self.gradient(there, ALL))


class ReferenceFSAM(ReferenceSAM):
    """d = g - sigma m; e = rho d / |d|; then m <- lam m + (1 - lam) g. Reference: arXiv 2403.12350.

    Args:
        w, gradient, **sgd: As for `ReferenceSAM`.
        sigma, lam: As in the paper.
    """

    def __init__(self, w: Tensors, gradient: Gradient, *, sigma: float = 1.0, lam: float = 0.9, **sgd: Any) -> None:
        super().__init__(w, gradient, **sgd)
        self.sigma = sigma
        self.lam = lam
        self.m: Tensors | None = None

    def step(self) -> None:
        """The m of before this step; in the first one d = g and m = g."""
        g = self.gradient(self.w, ALL)
        d = g if self.m is None else plus(1, g, -self.sigma, self.m)
        self.m = g if self.m is None else plus(self.lam, self.m, 1 - self.lam, g)
        self.descend(self.gradient(perturbed(self.w, d, self.rho), ALL))


class ReferenceSAMON(ReferenceSAM):
    """SAM whose e is 0 but on the parameters of norm layers. Reference: arXiv 2306.04226.

    Args:
        w, gradient, **sgd: As for `ReferenceSAM`.
        norms: Numbers of the tensors that belong to norm layers.
    """

    def __init__(self, w: Tensors, gradient: Gradient, *, norms: Sequence[int], **sgd: Any) -> None:
        super().__init__(w, gradient, **sgd)
        self.norms = norms

    def step(self) -> None:
        """g; e from g on norm layers alone; g_s at w + e; w <- w - lr g_s."""
        g = self.gradient(self.w, ALL)
        g_N = [gi if i in self.norms else torch.zeros_like(gi) for i, gi in enumerate(g)]
        self.descend(self.gradient(perturbed(self.w, g_N, self.rho), ALL))


class ReferenceLESAM(ReferenceSAM):
    """e = r g / |g| with r = min(sigma / |g|, rho). Reference: arXiv 2605.10183.

    Args:
        w, gradient, **sgd: As for `ReferenceSAM`; rho is the largest radius.
        sigma: Rise of the loss to first order.
        steps: Length of the run: sigma falls by a half cosine over its last part.
        tail: That part.
    """

    def __init__(
        self, w: Tensors, gradient: Gradient, *, sigma: float, steps: int, tail: float = 0.2, **sgd: Any
    ) -> None:
        super().__init__(w, gradient, **sgd)
        self.sigma = sigma
        self.steps = steps
        self.tail = tail
        self.t = 0

    def step(self) -> None:
        """g; r; e; g_s at w + e; w <- w - lr g_s."""
        left = (self.steps - self.t) / (self.tail * self.steps)
        sigma = self.sigma if left >= 1 else self.sigma * math.sin(math.pi / 2 * left) ** 2
        g = self.gradient(self.w, ALL)
        self.descend(self.gradient(perturbed(self.w, g, min(sigma / (norm(g) + 1e-12), self.rho)), ALL))
        self.t += 1


class ReferenceESAM(ReferenceSAM):
    """e on each tensor with probability beta, divided by beta; g_s on the rows whose loss rises most.

    Args:
        w, gradient, **sgd: As for `ReferenceSAM`.
        losses: The losses of the rows at given weights.
        uniform: Uniform number 0, 1, ..., one for each tensor and step.
        beta: Probability of a tensor.
        gamma: Share of the rows.

    Reference: arXiv 2110.03141.
    """

    def __init__(
        self,
        w: Tensors,
        gradient: Gradient,
        *,
        losses: Callable[[Tensors], list[float]],
        uniform: Uniform,
        beta: float = 0.5,
        gamma: float = 0.5,
        **sgd: Any,
    ) -> None:
        super().__init__(w, gradient, **sgd)
        self.losses = losses
        self.uniform = uniform
        self.beta = beta
        self.gamma = gamma
        self.drawn = 0
        self.chosen: list[int] = []

    def step(self) -> None:
        """The chosen rows are left in `chosen`, in their order in the batch."""
        g = self.gradient(self.w, ALL)
        e = [self.rho * gi / (norm(g) + 1e-12) for gi in g]
        there = []
        for wi, ei in zip(self.w, e, strict=True):
            there.append(wi + ei / self.beta if self.uniform(self.drawn) < self.beta else wi)
            self.drawn += 1
        before, after = self.losses(self.w), self.losses(there)
        rise = [b - a for a, b in zip(before, after, strict=True)]
        falling = sorted(range(len(rise)), key=lambda row: -rise[row])
        self.chosen = sorted(falling[: math.floor(self.gamma * len(rise))])
        self.descend(self.gradient(there, self.chosen))


class ReferenceMSAM(ReferenceSAM):
    """One gradient, at w - rho v / |v|, with v the momentum buffer. Reference: arXiv 2401.12033."""

    def step(self) -> None:
        """Without a buffer, in the first step, at w."""
        there = self.w if self.velocity is None else perturbed(self.w, self.velocity, -self.rho)
        self.descend(self.gradient(there, ALL))


class ReferenceS2SAM(ReferenceSAM):
    """One gradient, at w + rho g' / |g'|, with g' the gradient of the step before. S2-SAM, NeurIPS 2024."""

    def __init__(self, w: Tensors, gradient: Gradient, **sgd: Any) -> None:
        super().__init__(w, gradient, **sgd)
        self.previous: Tensors | None = None

    def step(self) -> None:
        """In the first step, at w."""
        there = self.w if self.previous is None else perturbed(self.w, self.previous, self.rho)
        self.previous = self.gradient(there, ALL)
        self.descend(self.previous)


class ReferenceSAQ(ReferenceSAM):
    """g_s with Q(w) + rho g_q / |g_q| in place of Q(w). Reference: arXiv 2111.12273.

    Args:
        w, **sgd: As for `ReferenceSAM`.
        gradients: Given w and e, with Q(w) + e as weights: the gradients at w (through Q) and those at Q(w).
            Q is the identity on tensors without quantizer.
    """

    def __init__(
        self, w: Tensors, gradients: Callable[[Tensors, Tensors], tuple[Tensors, Tensors]], **sgd: Any
    ) -> None:
        super().__init__(w, lambda w, rows: gradients(w, [torch.zeros_like(wi) for wi in w])[0], **sgd)
        self.gradients = gradients

    def step(self) -> None:
        """g_q; e; g_s; the latent w stays where it is until the step is made."""
        zero = [torch.zeros_like(wi) for wi in self.w]
        _, g_q = self.gradients(self.w, zero)
        g_s, _ = self.gradients(self.w, perturbed(zero, g_q, self.rho))
        self.descend(g_s)
