r"""Pay where the gradient is large for its time. Pure Python.

    m <- d m + (1 - d) |g|^2,   v <- d v + (1 - d) (|g|^2 - m)^2          at each step
    pays iff |g|^2 >= m + c sqrt(v),      c falls from c_first to c_last along a straight line

Reference: arXiv 2304.14647, from the paper's description.
"""

from __future__ import annotations

import math

from qat_vsam.errors import ConfigError, explain
from qat_vsam.optim.schedule import CountingSchedule, check_total_steps


class GradientNormSchedule(CountingSchedule):
    """AE-SAM's rule.

    Args:
        total_steps: Length of the run.
        decay: d.
        first, last: c at the beginning and at the end.
        share: Of the batch, that a second gradient is taken on.

    Raises:
        ConfigError: An argument is out of range.

    Example:
        >>> schedule = GradientNormSchedule(total_steps=10)
        >>> paid = []
        >>> for norm in (1.0, 1.0, 0.5, 2.0):
        ...     paid.append(schedule.pays(1.0, 0.1, norm))
        ...     schedule.advance(0.0, 0.1, norm)
        >>> paid
        [True, True, False, True]
    """

    looks_at_gradient = True
    _state = (*CountingSchedule._state, "mean", "variance")

    def __init__(
        self, total_steps: int, decay: float = 0.9, first: float = 1.0, last: float = -1.0, share: float = 1.0
    ) -> None:
        super().__init__(share)
        if not 0 <= decay < 1:
            raise ConfigError(explain("decay", decay, "a number in [0, 1)", "use 0.9"))
        self.total_steps = check_total_steps(total_steps)
        self.decay = decay
        self.first = first
        self.last = last
        self.mean: float | None = None
        self.variance = 0.0

    def pays(self, cost: float, learning_rate: float, gradient_norm: float | None = None) -> bool:
        # Before the gradient is known the answer is perhaps.
        if gradient_norm is None:
            return True
        square = gradient_norm**2
        if not math.isfinite(square):
            return False
        mean, variance = self._followed(square)
        done = min(self.step / self.total_steps, 1.0)
        threshold = self.first + (self.last - self.first) * done
        return square >= mean + threshold * math.sqrt(variance)

    def advance(self, paid: float, learning_rate: float, gradient_norm: float | None = None) -> None:
        super().advance(paid, learning_rate, gradient_norm)
        if gradient_norm is not None and math.isfinite(gradient_norm**2):
            self.mean, self.variance = self._followed(gradient_norm**2)

    def _followed(self, square: float) -> tuple[float, float]:
        if self.mean is None:
            return square, 0.0
        mean = self.decay * self.mean + (1 - self.decay) * square
        return mean, self.decay * self.variance + (1 - self.decay) * (square - mean) ** 2
