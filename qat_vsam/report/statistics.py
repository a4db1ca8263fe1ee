"""Means, paired differences and ratios over seeds, each with the interval that its own data supports.

All intervals are two-sided, 95 % unless told, and assume exchangeable seeds and roughly normal differences
(Student's t). Where no interval can be had (one seed, or no spread at all) there is none: a zero-width
interval would claim a certainty that was not measured.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
from scipy.special import stdtr, stdtrit

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
        clipped: the interval would have passed the ends of the scale and was cut there.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    p_value: float | None = None
    note: str = ""
    clipped: bool = False

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
    n = len(values)
    if n == 0:
        return Estimate(None, note="no seed")
    mean = fmean(values)
    if n == 1:
        return Estimate(mean, n=1, note="one seed")
    error = standard_error(values)
    if error is None:
        return Estimate(mean, n=n, note="the same for every seed")
    reach = t_quantile(n - 1, confidence) * error
    p_value = 2 * float(stdtr(n - 1, -abs(mean) / error))
    return Estimate(mean, mean - reach, mean + reach, n, p_value)


def accuracy_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """The mean of accuracies in % and its Student interval, cut where it would pass 0 or 100.

    Args:
        values: one accuracy in % per seed.
        confidence: coverage of the interval, in (0, 1).

    Example:
        >>> estimate = accuracy_interval([99.0, 97.0])
        >>> round(estimate.low, 1), estimate.high, estimate.clipped
        (85.3, 100.0, True)
    """
    estimate = mean_interval(values, confidence)
    if estimate.low is None or estimate.high is None:
        return estimate
    low, high = max(estimate.low, 0.0), min(estimate.high, 100.0)
    return replace(estimate, low=low, high=high, clipped=(low, high) != (estimate.low, estimate.high))


def p_above_zero(values: Sequence[float]) -> float | None:
    """The one-sided p-value of a t test of "the mean is above zero"; None where there is no spread to test by.

    Example:
        >>> round(p_above_zero([1.0, 2.0, 3.0]), 4)
        0.0371
    """
    error = standard_error(values)
    return None if error is None else float(stdtr(len(values) - 1, -fmean(values) / error))


def standard_error(values: Sequence[float]) -> float | None:
    """The standard error of the mean; None for one value, or where all are the same up to rounding."""
    n, mean = len(values), fmean(values)
    if n < 2:
        return None
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    return None if spread <= 1e-12 * max(1.0, abs(mean)) else spread / math.sqrt(n)


def t_quantile(freedom: int, confidence: float = CONFIDENCE) -> float:
    """How many standard errors a two-sided Student interval reaches to either side."""
    return float(stdtrit(freedom, 0.5 + confidence / 2))


def paired_difference(a: Mapping[int, float], b: Mapping[int, float], confidence: float = CONFIDENCE) -> Estimate:
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
    arm: Mapping[int, float], sgd: Mapping[int, float], sam: Mapping[int, float], confidence: float = CONFIDENCE
) -> Estimate:
    r"""The share of SAM's gain over SGD (or another control in its place) that an arm keeps: see `ratio_of_gains`.

    With the split control in the place of SGD it is (arm - split) / (SAM - split). That sets a method which splits its
    batch beside a SAM that does not; (arm - split) / (SAM - SGD), each against its own control, is
    `ratio_of_gains(arm, split, sam, sgd)`.

    Args:
        arm, sgd, sam: one accuracy per seed; the seeds that all three have are used.
        confidence: coverage of the interval, in (0, 1).

    Example:
        >>> sgd = {0: 95.0, 1: 95.4, 2: 95.2, 3: 95.1}
        >>> sam = {0: 96.0, 1: 96.5, 2: 96.1, 3: 96.1}
        >>> arm = {0: 95.9, 1: 96.4, 2: 96.0, 3: 96.1}
        >>> share = share_kept(arm, sgd, sam)
        >>> round(share.value, 3), round(share.low, 2), round(share.high, 2)
        (0.925, 0.84, 1.0)
    """
    return ratio_of_gains(arm, sgd, sam, sgd, confidence)


def ratio_of_gains(
    arm: Mapping[int, float],
    control: Mapping[int, float],
    sam: Mapping[int, float],
    sgd: Mapping[int, float],
    confidence: float = CONFIDENCE,
) -> Estimate:
    r"""An arm's gain over its own control as a share of SAM's gain over SGD, with Fieller's interval.

    With the paired gains \(x = arm - control\) and \(y = sam - sgd\) the share is \(\bar x / \bar y\). The
    interval holds every ratio r for which the paired mean of \(x - r y\) is not significantly different from
    zero. It is finite exactly where SAM's own gain differs significantly from zero; where that gain is not
    above zero there is nothing to keep a share of, and the value is None.

    Args:
        arm, control, sam, sgd: one accuracy per seed; the seeds that all four have are used.
        confidence: coverage of the interval, in (0, 1).

    Reference: E. C. Fieller, "Some problems in interval estimation", J. R. Stat. Soc. B 16 (1954).
    """
    seeds = sorted(arm.keys() & control.keys() & sam.keys() & sgd.keys())
    n = len(seeds)
    if n < 2:
        return Estimate(None, n=n, note="one seed" if n else "no seed in common")
    x = np.array([arm[seed] - control[seed] for seed in seeds])
    y = np.array([sam[seed] - sgd[seed] for seed in seeds])
    gain = mean_interval(y.tolist(), confidence)
    if not gain.above_zero:
        return Estimate(None, n=n, note=NOT_ESTABLISHED)
    covariance = np.cov(x, y, ddof=1) * t_quantile(n - 1, confidence) ** 2 / n
    mean_x, mean_y = float(x.mean()), float(y.mean())
    # the interval is where a r^2 - 2 b r + c <= 0
    a = mean_y**2 - float(covariance[1, 1])
    b = mean_x * mean_y - float(covariance[0, 1])
    c = mean_x**2 - float(covariance[0, 0])
    root = math.sqrt(max(0.0, b * b - a * c))
    return Estimate(mean_x / mean_y, (b - root) / a, (b + root) / a, n)


def holm(p_values: Sequence[float], questions: Sequence[int] | None = None) -> list[float]:
    r"""Holm's step-down correction: the chance of one false claim among all stays below the level.

    The p-values are taken in rising order, each multiplied by the number of null hypotheses that can still be true
    together with it, and never made smaller than the one before. That number is how many are left; but of the
    hypotheses about one question (an arm's mean is that of SAM; it is a margin or more away) only one can be true, so a
    question counts once as long as any of its hypotheses is left (Shaffer).

    Args:
        p_values: one per hypothesis, in [0, 1].
        questions: the question that each belongs to; None: each is one of its own.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
        >>> holm([0.01, 0.04, 0.03], questions=[0, 0, 1])
        [0.02, 0.06, 0.06]

    Reference: S. Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Stat. 6 (1979);
    J. P. Shaffer, "Modified sequentially rejective multiple test procedures", J. Am. Stat. Assoc. 81 (1986).
    """
    questions = range(len(p_values)) if questions is None else questions
    left = Counter(questions)
    corrected = [0.0] * len(p_values)
    least = 0.0
    for index in sorted(range(len(p_values)), key=lambda i: p_values[i]):
        least = max(least, min(1.0, len(left) * p_values[index]))
        corrected[index] = least
        left[questions[index]] -= 1
        if not left[questions[index]]:
            del left[questions[index]]
    return corrected


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
