"""What a quantizer needs to know of a tensor before its first step, and the step sizes that follow."""

from __future__ import annotations

import itertools
import math
from typing import Literal

import torch
from torch import Tensor

StepSizeMethod = Literal["mse", "lsq"]
STEP_SIZE_METHODS = ("mse", "lsq")

_SAMPLE_PER_UPDATE = 2**15
# First fractions of the range's step, in steps of a fifth; then of the best of these, in steps of a fortieth.
_COARSE = [1.05 * 0.82**i for i in range(16)]
_FINE = [1 + 0.025 * i for i in range(-6, 8) if i]


class TensorStatistics:
    """Minimum, maximum and mean magnitude of all values seen, and a sample of them for error searches.

    Args:
        per_channel: one record for each slice of axis 0 instead of one in all. All values are kept as the
            sample then, since only weights are seen so.
        sampling: False keeps no sample.
    """

    def __init__(self, per_channel: bool = False, sampling: bool = True) -> None:
        self.per_channel = per_channel
        self.count = 0
        self._minimum: Tensor | None = None
        self._maximum: Tensor | None = None
        self._magnitude: Tensor | None = None
        self._samples: list[Tensor] = []
        self._generator = torch.Generator().manual_seed(0) if sampling else None

    def update(self, x: Tensor) -> None:
        """Take in one tensor; with `per_channel`, of the same number of channels each time."""
        x = x.detach()
        rows = x.reshape(x.shape[0], -1) if self.per_channel else x.reshape(1, -1)
        if rows.numel() == 0:
            return
        rows = rows if rows.dtype == torch.float64 else rows.float()
        low, high, magnitude = rows.amin(1), rows.amax(1), rows.abs().sum(1, dtype=torch.float64)
        if self._minimum is None or self._maximum is None or self._magnitude is None:
            self._minimum, self._maximum, self._magnitude = low, high, magnitude
        else:
            self._minimum = torch.minimum(self._minimum, low)
            self._maximum = torch.maximum(self._maximum, high)
            self._magnitude = self._magnitude + magnitude
        self.count += rows.shape[1]
        if self._generator is None:
            return
        if not self.per_channel and rows.shape[1] > _SAMPLE_PER_UPDATE:
            picks = torch.randint(rows.shape[1], (_SAMPLE_PER_UPDATE,), generator=self._generator)
            rows = rows[:, picks.to(rows.device)]
        self._samples.append(rows)

    @property
    def minimum(self) -> Tensor:
        """Smallest value, shape () or (C,)."""
        return self._shaped(self._minimum)

    @property
    def maximum(self) -> Tensor:
        """Largest value, shape () or (C,)."""
        return self._shaped(self._maximum)

    @property
    def mean_magnitude(self) -> Tensor:
        """Mean of |x|, shape () or (C,)."""
        return self._shaped(self._magnitude).div(self.count).to(self.minimum.dtype)

    @property
    def finite(self) -> bool:
        """Whether no NaN and no infinity was seen."""
        return bool(torch.isfinite(self.minimum).all() and torch.isfinite(self.maximum).all())

    @property
    def sample(self) -> Tensor:
        """Some of the values, shape (1, K) or (C, K)."""
        return torch.cat(self._samples, dim=1)

    def _shaped(self, value: Tensor | None) -> Tensor:
        if value is None:
            raise ValueError("no values were seen yet")
        return value if self.per_channel else value.reshape(())


def initial_step_size(
    statistics: TensorStatistics, q_min: float, q_max: float, method: StepSizeMethod = "mse"
) -> Tensor:
    """The step size before training, shape () or (C,), positive.

    "mse" takes the candidate with the smallest squared error sum (x - x_hat)^2, from a coarse grid of
    fractions of the range and a fine one around its best. "lsq" takes 2 mean|x| / sqrt(Qp), as the LSQ paper
    does. A channel of zeros gets the mean of the other channels, or 1.

    Args:
        statistics: what was seen.
        q_min, q_max: smallest and largest level, integers or both halves of odd numbers.
        method: "mse" or "lsq".

    Reference: arXiv 1902.08153 (lsq); 2004.09576 (squared error).
    """
    if method == "lsq":
        step = 2 * statistics.mean_magnitude / math.sqrt(q_max)
    else:
        step = _least_squared_error(statistics.sample, range_step(statistics, q_min, q_max), q_min, q_max)
    return positive_everywhere(step)


def range_step(statistics: TensorStatistics, q_min: float, q_max: float) -> Tensor:
    """The smallest step size that clips nothing: max(maximum / Qp, minimum / Qn); 0 for zeros."""
    step = _reaching(statistics.maximum.clamp_min(0), q_max)
    return step if q_min == 0 else torch.maximum(step, _reaching(statistics.minimum.clamp_max(0), q_min))


def _reaching(value: Tensor, level: float) -> Tensor:
    """value / level, the next number above it where value / s would round to beyond the level and count as clipped."""
    step = value / level
    return torch.where((value / step).abs() > abs(level), step.nextafter(torch.full_like(step, math.inf)), step)


def asymmetric_range(statistics: TensorStatistics, q_max: float) -> tuple[Tensor, Tensor]:
    """The range (low, high) around zero, shape (), that an asymmetric grid of Qp + 1 codes represents best.

    Both ends are searched for the least squared error sum (x - x_hat)^2: all pairs of coarse fractions of what was
    seen, then each end by itself, twice. For zeros it is (0, 0).

    Args:
        statistics: what was seen, in one for the whole tensor.
        q_max: largest code.

    Reference: arXiv 2004.09576, section 4.
    """
    low, high = statistics.minimum.clamp_max(0), statistics.maximum.clamp_min(0)
    least, unit = torch.full_like(low, math.inf), _unit(high - low)
    pairs = list(itertools.product(_COARSE[::2], repeat=2))
    first, second = [(f, 1.0) for f in _FINE], [(1.0, f) for f in _FINE]
    for fractions in (pairs, first, second, first, second):
        centre_low, centre_high = low, high
        for at_low, at_high in fractions:
            new_low, new_high = centre_low * at_low, centre_high * at_high
            error = _asymmetric_error(statistics.sample, new_low, new_high, q_max, unit)
            better = error < least
            low, high = torch.where(better, new_low, low), torch.where(better, new_high, high)
            least = torch.minimum(error, least)
    return low, high


def _asymmetric_error(sample: Tensor, low: Tensor, high: Tensor, q_max: float, unit: Tensor) -> Tensor:
    step = ((high - low) / q_max).clamp_min(torch.finfo(low.dtype).tiny)
    zero_point = (-low / step).round()
    x_hat = (sample / step).round_().clamp_(-zero_point, q_max - zero_point).mul_(step)
    return x_hat.sub_(sample).mul_(unit).square_().mean()


def percentile_step(statistics: TensorStatistics, q_min: float, q_max: float, percentile: float) -> Tensor:
    """The step size that clips what lies beyond a percentile at either end; 0 for zeros.

    Args:
        statistics: what was seen; the percentiles are those of its sample.
        q_min, q_max: smallest and largest level.
        percentile: in (50, 100].
    """
    ordered, count = statistics.sample.sort(dim=1).values, statistics.sample.shape[1]
    place = round((count - 1) * percentile / 100)
    step = _reaching(ordered[:, place].clamp_min(0), q_max)
    if q_min < 0:
        step = torch.maximum(step, _reaching(ordered[:, count - 1 - place].clamp_max(0), q_min))
    return step if statistics.per_channel else step.reshape(())


def _least_squared_error(sample: Tensor, largest: Tensor, q_min: float, q_max: float) -> Tensor:
    shift = q_min % 1
    best_step = largest.reshape(-1, 1)
    best_error, unit = torch.full_like(best_step, math.inf), _unit(best_step)
    for fractions in (_COARSE, _FINE):
        centre = best_step
        for fraction in fractions:
            step = (centre * fraction).clamp_min(torch.finfo(centre.dtype).tiny)
            x_hat = (sample / step).clamp_(q_min, q_max).sub_(shift).round_().add_(shift).mul_(step)
            error = x_hat.sub_(sample).mul_(unit).square_().mean(1, keepdim=True)
            best_step = torch.where(error < best_error, step, best_step)
            best_error = torch.minimum(error, best_error)
    return torch.where(largest > 0, best_step.reshape(largest.shape), 0.0)


def _unit(size: Tensor) -> Tensor:
    """A power of two that brings a size to about 1, so that no square of it vanishes; 1 for 0."""
    return torch.exp2(-torch.frexp(size).exponent.clamp(-120, 120).to(size.dtype))


def positive_everywhere(step: Tensor) -> Tensor:
    """The step sizes, where one is 0 the mean of the others, or 1."""
    good = step > 0
    if bool(good.all()):
        return step
    others = step[good].mean() if bool(good.any()) else torch.ones_like(step).mean()
    return torch.where(good, step, others)
