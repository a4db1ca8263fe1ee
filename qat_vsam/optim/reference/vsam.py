"""Twins of vSAM: the published algorithm, and a second gradient on part of the batch within a budget."""

from __future__ import annotations

import itertools
import math
import statistics
from fractions import Fraction
from typing import Any

from qat_vsam.optim.reference.base import ALL, Gradient, Loss, ReferenceSAM, Tensors, Uniform, norm, perturbed, plus


class ReferenceVSAM(ReferenceSAM):
    """A second gradient on part of the batch, as often as a budget allows; with reuse of h, if gamma is not 0.

    Of a part's h the share that is no noise of rounding is taken.

    Args:
        w, gradient, **sgd: As for `ReferenceSAM`.
        budget: Mean gradients a step, as an exact fraction.
        q: Share of the part, as an exact fraction.
        batch_size: Rows of the batch.
        loss: The mean loss at given weights on given rows.
        kappa: With it the root of the loss rises by at most that, to first order.
        gamma: Decay of h; 0: no reuse.
        ascend_only: Ascend along the part and take the whole batch's gradient there; no h.
    """

    def __init__(
        self,
        w: Tensors,
        gradient: Gradient,
        *,
        budget: Fraction,
        q: Fraction = Fraction(1, 4),
        batch_size: int,
        loss: Loss | None = None,
        kappa: float | None = None,
        gamma: float = 0.0,
        ascend_only: bool = False,
        **sgd: Any,
    ) -> None:
        super().__init__(w, gradient, **sgd)
        self.budget = budget
        self.rows = math.floor(q * batch_size)
        self.q = Fraction(self.rows, batch_size)
        self.loss = loss
        self.kappa = kappa
        self.gamma = gamma
        self.ascend_only = ascend_only
        self.credit = Fraction(0)
        self.h: Tensors | None = None
        self.i = 0
        self.cost = Fraction(0)

    def step(self) -> None:
        """Pay if the credit covers it; else reuse h while it is at most 6 steps old; else plain."""
        self.credit += self.budget - 1
        self.cost += 1
        if self.credit < self.q:
            g = self.gradient(self.w, ALL)
            self.i += 1
            if self.h is not None and self.i <= 6:
                g = plus(1, g, self.gamma**self.i, self.h)
            self.descend(g)
            return
        self.credit -= self.q
        self.cost += self.q
        part, rest, q = slice(0, self.rows), slice(self.rows, None), float(self.q)
        g_A = self.gradient(self.w, part)
        rho = self.rho
        if self.loss is not None and self.kappa is not None:
            slope_of_root = norm(g_A) / (2 * math.sqrt(self.loss(self.w, part)))
            rho = min(rho, self.kappa / slope_of_root)
        there = perturbed(self.w, g_A, rho)
        if self.ascend_only:
            self.descend(self.gradient(there, ALL))
            return
        g_s = self.gradient(there, part)
        h = plus(1, g_s, -1, g_A)
        if self.q < 1 and norm(h) > 0:
            c = (norm(g_s) ** 2 - norm(g_A) ** 2) / norm(h) ** 2
            h = plus(min(max(c, 0.0), 1.0), h, 0, h)
        g_B = self.gradient(self.w, rest)
        self.descend(plus(1, plus(q, g_A, 1 - q, g_B), 1, h))
        self.h, self.i = h, 0


class ReferenceVSAMPaper(ReferenceSAM):
    """The published vSAM. Reference: arXiv 2403.08821 and the code its authors published.

    Differs from that code where it fails: the decay of h is counted in integers, relative changes are taken
    over measured entries, and the uniform numbers are handed in.

    Args:
        w, gradient, rho, lr, momentum, weight_decay: As for `ReferenceSAM`.
        warmup: Steps of plain SAM.
        uniform: The uniform number of step 0, 1, 2, ...
        K, cap, a, b, N, gamma: As in the paper.
    """

    def __init__(
        self,
        w: Tensors,
        gradient: Gradient,
        *,
        warmup: int,
        uniform: Uniform,
        K: int = 50,
        cap: float = 0.8,
        a: float = 0.13,
        b: float = 0.13,
        N: int = 10,
        gamma: float = 0.7,
        rho: float = 0.05,
        lr: float = 0.1,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(w, gradient, rho=rho, lr=lr, momentum=momentum, weight_decay=weight_decay)
        self.warmup = warmup
        self.uniform = uniform
        self.K, self.cap, self.a, self.b, self.N, self.gamma = K, cap, a, b, N, gamma
        self.S = [0.0] * K
        self.R: list[float] = []
        self.V: list[float] = []
        self.h: Tensors | None = None
        self.i = 0
        self.n = 0
        self.s = 1.0
        self.p = 0.5
        self.f = 1
        self.t = 0
        self.decisions: list[bool] = []

    def step(self) -> None:
        """One step; whether it was a SAM step is appended to `decisions`."""
        if self.t < self.warmup:
            self.sam_step()
            self.n = 1
            self.decisions.append(True)
        else:
            if self.f % self.K == 0:
                dR, dV = mean_relative_change(self.R), mean_relative_change(self.V)
                self.s = min(max(self.s * (1 + self.a * dR + self.b * dV), 1.0), int(self.cap * self.K))
                self.p = self.s / self.K
                self.n = 0
            at_random = self.n < int(self.s) and self.uniform(self.t) >= 1 - self.p
            sam = at_random or self.K - self.f % self.K <= int(self.s) - self.n
            if sam:
                self.sam_step()
            else:
                self.sgd_step()
            self.decisions.append(sam)
            self.f += 1
        self.t += 1

    def sam_step(self) -> None:
        """A step with g_s, and what is measured at it."""
        g = self.gradient(self.w, ALL)
        g_s = self.gradient(perturbed(self.w, g, self.rho), ALL)
        self.h, self.i = plus(1, g_s, -1, g), 0
        self.n += 1
        H, G = norm(self.h[-self.N :]), norm(g[-self.N :])
        self.S = [*self.S, H][-self.K :]
        self.R = [*self.R, H / G][-self.K :]
        blocks, size = sorted(self.S), self.K // 5
        v = sum(statistics.variance(blocks[k * size : (k + 1) * size]) for k in range(5)) / 5
        self.V = [*self.V, v][-self.K :]
        self.descend(g_s)

    def sgd_step(self) -> None:
        """A step with g, or g + gamma^i h while i <= 6."""
        g = self.gradient(self.w, ALL)
        self.i += 1
        if self.h is not None and self.i <= 6:
            g = plus(1, g, self.gamma**self.i, self.h)
        self.descend(g)


def mean_relative_change(x: list[float]) -> float:
    """Mean of (x[k+1] - x[k]) / x[k], clipped to [-1, 1]; 0 with fewer than two entries."""
    changes = [(after - before) / before for before, after in itertools.pairwise(x)]
    return min(max(sum(changes) / len(changes), -1.0), 1.0) if changes else 0.0
