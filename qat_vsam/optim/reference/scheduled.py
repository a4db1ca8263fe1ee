"""Twins of the members and controls that differ from SAM in the steps at which they take its gradient."""

from __future__ import annotations

import math
from abc import abstractmethod
from fractions import Fraction
from typing import Any

from qat_vsam.optim.reference.base import ALL, Gradient, ReferenceSAM, Tensors, Uniform, dot, norm, perturbed, plus


class ReferenceSometimes(ReferenceSAM):
    """SAM at some steps; at others g + gamma^i h for the i-th step after, while i <= 6; else g.

    Args:
        w, gradient, **sgd: As for `ReferenceSAM`.
        gamma: Decay of h; 0: no reuse.
    """

    def __init__(self, w: Tensors, gradient: Gradient, *, gamma: float = 0.0, **sgd: Any) -> None:
        super().__init__(w, gradient, **sgd)
        self.gamma = gamma
        self.h: Tensors | None = None
        self.i = 0
        self.t = 0
        self.decisions: list[bool] = []

    @abstractmethod
    def sam(self, g: Tensors) -> bool:
        """Whether step t is one of SAM's, given its gradient."""

    def step(self) -> None:
        """One step; whether it was a SAM step is appended to `decisions`."""
        g = self.gradient(self.w, ALL)
        self.decisions.append(self.sam(g))
        if self.decisions[-1]:
            g_s = self.gradient(perturbed(self.w, g, self.rho), ALL)
            self.keep(g, g_s)
            self.descend(g_s)
        else:
            self.descend(self.reused(g))
        self.t += 1

    def keep(self, g: Tensors, g_s: Tensors) -> None:
        """h = g_s - g."""
        self.h, self.i = plus(1, g_s, -1, g), 0

    def reused(self, g: Tensors) -> Tensors:
        """g + gamma^i h."""
        self.i += 1
        return g if self.h is None or self.i > 6 else plus(1, g, self.gamma**self.i, self.h)


class ReferencePeriodicSAM(ReferenceSometimes):
    """At the steps 0, k, 2k, ... Reference: arXiv 2203.09962."""

    def __init__(self, w: Tensors, gradient: Gradient, *, k: int, **options: Any) -> None:
        super().__init__(w, gradient, **options)
        self.k = k

    def sam(self, g: Tensors) -> bool:
        """t mod k = 0."""
        return self.t % self.k == 0


class ReferenceRandomSAM(ReferenceSometimes):
    """With probability p. Reference: arXiv 2203.09962."""

    def __init__(self, w: Tensors, gradient: Gradient, *, p: float, uniform: Uniform, **options: Any) -> None:
        super().__init__(w, gradient, **options)
        self.p = p
        self.uniform = uniform

    def sam(self, g: Tensors) -> bool:
        """u_t < p."""
        return self.uniform(self.t) < self.p


class ReferenceRandomCountSAM(ReferenceSometimes):
    """At n of N steps, drawn by selection sampling (Knuth, Seminumerical Algorithms, 3.4.2, algorithm S)."""

    def __init__(self, w: Tensors, gradient: Gradient, *, n: int, N: int, uniform: Uniform, **options: Any) -> None:
        super().__init__(w, gradient, **options)
        self.n = n
        self.N = N
        self.uniform = uniform

    def sam(self, g: Tensors) -> bool:
        """(N - t) u_t < n - m, with m chosen so far."""
        return (self.N - self.t) * self.uniform(self.t) < self.n - sum(self.decisions)


class ReferenceRampSAM(ReferenceSometimes):
    """Where the integral of a rate that goes linearly from a to b within N steps passes a whole number."""

    def __init__(self, w: Tensors, gradient: Gradient, *, a: Fraction, b: Fraction, N: int, **options: Any) -> None:
        super().__init__(w, gradient, **options)
        self.a = a
        self.b = b
        self.N = N
        self.integral = Fraction(0)

    def sam(self, g: Tensors) -> bool:
        """The midpoint rule integrates a straight line exactly."""
        before = self.integral
        self.integral += self.a + (self.b - self.a) * Fraction(2 * self.t + 1, 2 * self.N)
        return math.floor(self.integral) > math.floor(before)


class ReferenceLateSAM(ReferenceSometimes):
    """In the last steps of the run, from step `begin` on. Reference: arXiv 2410.10373."""

    def __init__(self, w: Tensors, gradient: Gradient, *, begin: int, **options: Any) -> None:
        super().__init__(w, gradient, **options)
        self.begin = begin

    def sam(self, g: Tensors) -> bool:
        """t >= begin."""
        return self.t >= self.begin


class ReusesAcross:
    """What LookSAM adds in between: g_v, the part of g_s across g. Reference: arXiv 2203.02714."""

    alpha: float
    g_v: Tensors | None = None

    def keep(self, g: Tensors, g_s: Tensors) -> None:
        """g_v = g_s - |g_s| cos(theta) g / |g|."""
        self.g_v = across(g, g_s)

    def reused(self, g: Tensors) -> Tensors:
        """g + alpha |g| / (|g_v| + 1e-12) g_v."""
        return g if self.g_v is None else plus(1, g, self.alpha * norm(g) / (norm(self.g_v) + 1e-12), self.g_v)


class ReferenceLookSAM(ReusesAcross, ReferencePeriodicSAM):
    """g_v, the part of g_s across g, is added in between. Reference: arXiv 2203.02714.

    Args:
        w, gradient, k, **sgd: As for `ReferencePeriodicSAM`.
        alpha: As in the paper.
    """

    def __init__(self, w: Tensors, gradient: Gradient, *, k: int = 5, alpha: float = 0.7, **sgd: Any) -> None:
        super().__init__(w, gradient, k=k, **sgd)
        self.alpha = alpha


class ReferenceAESAM(ReferenceSometimes):
    """At the steps with |g|^2 >= mu + c sigma, c from lam_2 to lam_1. Reference: arXiv 2304.14647, as described.

    Args:
        w, gradient, **options: As for `ReferenceSometimes`.
        T: Length of the run.
        delta: Decay of mu and sigma^2.
        lam_2, lam_1: c at the beginning and at the end.
    """

    def __init__(
        self,
        w: Tensors,
        gradient: Gradient,
        *,
        T: int,
        delta: float = 0.9,
        lam_2: float = 1.0,
        lam_1: float = -1.0,
        **options: Any,
    ) -> None:
        super().__init__(w, gradient, **options)
        self.T = T
        self.delta = delta
        self.lam_2 = lam_2
        self.lam_1 = lam_1
        self.mu: float | None = None
        self.var = 0.0
        self.thresholds: list[float] = []

    def sam(self, g: Tensors) -> bool:
        """mu and sigma^2 first follow |g|^2; the threshold is appended to `thresholds`."""
        square = dot(g, g)
        if self.mu is None:
            self.mu = square
        self.mu = self.delta * self.mu + (1 - self.delta) * square
        self.var = self.delta * self.var + (1 - self.delta) * (square - self.mu) ** 2
        c = self.lam_2 * (1 - self.t / self.T) + self.lam_1 * self.t / self.T
        self.thresholds.append(self.mu + c * math.sqrt(self.var))
        # On the first step both sides are the same number up to rounding.
        return self.t == 0 or square >= self.thresholds[-1]


class ReferenceAELookSAM(ReusesAcross, ReferenceAESAM):
    """LookSAM whose g_v is renewed where AE-SAM takes g_s. Reference: arXiv 2304.14647.

    Args:
        w, gradient, **options: As for `ReferenceAESAM`.
        alpha: As for `ReferenceLookSAM`.
    """

    def __init__(self, w: Tensors, gradient: Gradient, *, alpha: float = 0.7, **options: Any) -> None:
        super().__init__(w, gradient, **options)
        self.alpha = alpha


class ReferenceSplitSGD(ReferenceSAM):
    """No second gradient: q g_A + (1 - q) g_B.

    Args:
        w, gradient, **sgd: As for `ReferenceSAM`.
        q: Share of the part, as an exact fraction.
        batch_size: Rows of the batch.
    """

    def __init__(self, w: Tensors, gradient: Gradient, *, q: Fraction, batch_size: int, **sgd: Any) -> None:
        super().__init__(w, gradient, **sgd)
        self.rows = math.floor(q * batch_size)
        self.q = self.rows / batch_size

    def step(self) -> None:
        """g_A; g_B; their mean over the rows."""
        g_A = self.gradient(self.w, slice(0, self.rows))
        g_B = self.gradient(self.w, slice(self.rows, None))
        self.descend(plus(self.q, g_A, 1 - self.q, g_B))


def across(g: Tensors, g_s: Tensors) -> Tensors:
    """g_s - |g_s| cos(theta) g / |g|, with theta the angle between the two."""
    cosine = dot(g, g_s) / (norm(g) * norm(g_s))
    return plus(1, g_s, -norm(g_s) * cosine / norm(g), g)
