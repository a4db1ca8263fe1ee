"""Means, paired differences and ratios over seeds, each with the interval that its own data supports.

All intervals are two-sided, 95 % unless told, and assume exchangeable seeds and roughly normal differences
(Student's t). Where no interval can be had (one seed, or no spread at all) there is none: a zero-width
interval would claim a certainty that was not measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
NOT_ESTABLISHED = "SAM's gain not established"


@dataclass(frozen=True)
class Estimate:
    """A number with its interval.

    Attributes:
        value: the estimate, None where it has no meaning (then `note` says why).
        low, high: the interval, None where there is none.
        n: seeds that it rests on.
        p_value: two-sided, against zero; None where it was not asked for or cannot be had.
        note: why the value or its interval is missing.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    p_value: float | None = None
    note: str = ""

    @property
    def above_zero(self) -> bool:
        """True where the whole interval lies above zero."""
        return self.low is not None and self.low > 0

    @property
    def below_zero(self) -> bool:
        """True where the whole interval lies below zero."""
        return self.high is not None and self.high < 0


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    r"""The mean over seeds and its Student interval \(\bar x \pm t_{n-1} s / \sqrt n\).

    Args:
        values: one number per seed.
        confidence: coverage of the interval, in (0, 1).

    Example:
        >>> estimate = mean_interval([96.0, 97.0, 98.0])
        >>> round(estimate.value, 2), round(estimate.low, 2), round(estimate.high, 2)
        (97.0, 94.52, 99.48)
        >>> mean_interval([97.0]).note
        'one seed'
    """
    x = np.asarray(values, dtype=float)
    n = len(x)
    if n == 0:
        return Estimate(None, note="no seed")
    mean = float(x.mean())
    if n == 1:
        return Estimate(mean, n=1, note="one seed")
    spread = float(x.std(ddof=1))
    # a deterministic arm gives the same number for every seed, up to rounding
    if spread <= 1e-12 * max(1.0, abs(mean)):
        return Estimate(mean, n=n, note="the same for every seed")
    error = spread / math.sqrt(n)
    reach = float(stats.t.ppf(0.5 + confidence / 2, n - 1)) * error
    p_value = float(2 * stats.t.sf(abs(mean) / error, n - 1))
    return Estimate(mean, mean - reach, mean + reach, n, p_value)


def paired_difference(a: dict[int, float], b: dict[int, float], confidence: float = CONFIDENCE) -> Estimate:
    """The mean of a - b over the seeds that both have, with the paired t interval and p-value.

    Args:
        a, b: one number per seed.
        confidence: coverage of the interval, in (0, 1).

    Example:
        >>> estimate = paired_difference({0: 3.0, 1: 5.0, 2: 4.5}, {0: 1.0, 1: 2.0, 2: 2.0, 3: 9.0})
        >>> estimate.value, estimate.n, estimate.above_zero
        (2.5, 3, True)
    """
    seeds = sorted(a.keys() & b.keys())
    if not seeds:
        return Estimate(None, note="no seed in common")
    return mean_interval([a[seed] - b[seed] for seed in seeds], confidence)


def share_kept(
    arm: dict[int, float], sgd: dict[int, float], sam: dict[int, float], confidence: float = CONFIDENCE
) -> Estimate:
    r"""The share of SAM's gain over SGD (or another control in its place) that an arm keeps, with Fieller's interval.

    With the paired gains \(x = arm - sgd\) and \(y = sam - sgd\) the share is \(\bar x / \bar y\). The
    interval holds every ratio r for which the paired mean of \(x - r y\) is not significantly different from
    zero. It is finite exactly where SAM's own gain differs significantly from zero; where that gain is not
    above zero there is nothing to keep a share of, and the value is None.

    Args:
        arm, sgd, sam: one accuracy per seed; the seeds that all three have are used. The split control in the place of
            SGD gives the share of what SAM gains beyond the effect of split batches.
        confidence: coverage of the interval, in (0, 1).

    Example:
        >>> sgd = {0: 95.0, 1: 95.4, 2: 95.2, 3: 95.1}
        >>> sam = {0: 96.0, 1: 96.5, 2: 96.1, 3: 96.1}
        >>> arm = {0: 95.9, 1: 96.4, 2: 96.0, 3: 96.1}
        >>> share = share_kept(arm, sgd, sam)
        >>> round(share.value, 3), round(share.low, 2), round(share.high, 2)
        (0.925, 0.84, 1.0)

    Reference: E. C. Fieller, "Some problems in interval estimation", J. R. Stat. Soc. B 16 (1954).
    """
    seeds = sorted(arm.keys() & sgd.keys() & sam.keys())
    n = len(seeds)
    if n < 2:
        return Estimate(None, n=n, note="one seed" if n else "no seed in common")
    x = np.array([arm[seed] - sgd[seed] for seed in seeds])
    y = np.array([sam[seed] - sgd[seed] for seed in seeds])
    gain = mean_interval(y.tolist(), confidence)
    if not gain.above_zero:
        return Estimate(None, n=n, note=NOT_ESTABLISHED)
    covariance = np.cov(x, y, ddof=1) * stats.t.ppf(0.5 + confidence / 2, n - 1) ** 2 / n
    mean_x, mean_y = float(x.mean()), float(y.mean())
    # the interval is where a r^2 - 2 b r + c <= 0
    a = mean_y**2 - float(covariance[1, 1])
    b = mean_x * mean_y - float(covariance[0, 1])
    c = mean_x**2 - float(covariance[0, 0])
    root = math.sqrt(max(0.0, b * b - a * c))
    return Estimate(mean_x / mean_y, (b - root) / a, (b + root) / a, n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the chance of one false claim among all stays below the level.

    Args:
        p_values: one per comparison, in [0, 1].

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]

    Reference: S. Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Stat. 6 (1979).
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(stepped, 1.0)
    return [float(value) for value in corrected]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other beats: none is cheaper and at least as accurate.

    Args:
        points: (cost, accuracy) pairs; less cost and more accuracy are better.

    Example:
        >>> pareto_front([(1.0, 95.0), (2.0, 97.0), (1.2, 96.5), (1.3, 96.0)])
        [0, 2, 1]
    """
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not front or points[index][1] > points[front[-1]][1]:
            front.append(index)
    return front
