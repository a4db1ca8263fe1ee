"""Schedules that decide by the number of the step alone, and by chance. Pure Python.

They are members of the family by themselves (periodic, random), and the controls that a cleverer schedule has
to be better than at the same number of second gradients.
"""

from __future__ import annotations

from qat_vsam.errors import ConfigError, explain
from qat_vsam.optim.counter import counter_uniform
from qat_vsam.optim.schedule import CountingSchedule, check_total_steps


class Periodic(CountingSchedule):
    """At every interval-th step, the first included.

    Example:
        >>> schedule = Periodic(3)
        >>> paid = []
        >>> for step in range(5):
        ...     paid.append(schedule.pays(1.0, 0.1))
        ...     schedule.advance(1.0 * paid[-1], 0.1)
        >>> paid
        [True, False, False, True, False]
    """

    def __init__(self, interval: int, share: float = 1.0) -> None:
        super().__init__(share)
        if interval < 1:
            raise ConfigError(explain("interval", interval, "a number of steps >= 1", "use 5"))
        self.interval = interval

    def declared_rate(self) -> tuple[float, float]:
        return 1 / self.interval, 1 / self.interval

    def pays(self, cost: float, learning_rate: float, gradient_norm: float | None = None) -> bool:
        return self.step % self.interval == 0


class RandomSteps(CountingSchedule):
    """With a probability at each step, or at a given number of steps of a run, each set of them alike.

    Args:
        probability: Of paying at a step; without `count`.
        count: Payments over the run; then `total_steps` is its length.
        total_steps: See `count`, which alone needs it.
        seed: Of the counter-based generator.
        share: As for `CountingSchedule`.

    Raises:
        ConfigError: Neither or both of probability and count are given, or one is out of range.
    """

    def __init__(
        self,
        probability: float | None = None,
        *,
        count: int | None = None,
        total_steps: int | None = None,
        seed: int = 0,
        share: float = 1.0,
    ) -> None:
        super().__init__(share)
        if (probability is None) == (count is None):
            given = f"probability={probability}, count={count}"
            raise ConfigError(explain("random steps", given, "one of the two", "give probability=0.5 alone"))
        if probability is not None and not 0 <= probability <= 1:
            raise ConfigError(explain("probability", probability, "a number in [0, 1]", "use 0.5"))
        if probability is not None and total_steps is not None:
            rule = "none with a probability, which does not depend on the length of the run"
            raise ConfigError(explain("total_steps", total_steps, rule, "leave it out, or give count="))
        if count is not None and (total_steps is None or not 0 <= count <= total_steps):
            rule = f"a number of steps in [0, total_steps={total_steps}]"
            raise ConfigError(explain("count", count, rule, "pass total_steps= and at most as many payments"))
        self.probability = probability
        self.count = count
        self.total_steps = total_steps
        self.seed = seed

    def declared_rate(self) -> tuple[float, float]:
        rate = self.probability if self.probability is not None else (self.count or 0) / (self.total_steps or 1)
        return rate, rate

    def pays(self, cost: float, learning_rate: float, gradient_norm: float | None = None) -> bool:
        draw = counter_uniform(self.seed, self.step)
        if self.probability is not None:
            return draw < self.probability
        # selection sampling: what is left to pay over what is left of the run
        left = max((self.total_steps or 0) - self.step, 1)
        return draw * left < (self.count or 0) - self.payments


class Ramp(CountingSchedule):
    """At a rate that changes along a straight line over the run: no look at the training at all.

    Args:
        first, last: Rates at the beginning and at the end, in [0, 1]; their mean is that of the payments.
        total_steps: Length of the run.
        share: As for `CountingSchedule`.

    Raises:
        ConfigError: An argument is out of range.

    Example:
        >>> schedule = Ramp(0.0, 0.5, total_steps=8)
        >>> paid = []
        >>> for step in range(8):
        ...     paid.append(schedule.pays(1.0, 0.1))
        ...     schedule.advance(1.0 * paid[-1], 0.1)
        >>> [step for step, pays in enumerate(paid) if pays]
        [5, 7]
    """

    def __init__(self, first: float, last: float, *, total_steps: int, share: float = 1.0) -> None:
        super().__init__(share)
        for name, rate in (("first", first), ("last", last)):
            if not 0 <= rate <= 1:
                raise ConfigError(explain(name, rate, "a rate in [0, 1]", "use 0.02 and 0.8"))
        self.first = first
        self.last = last
        self.total_steps = check_total_steps(total_steps)

    def declared_rate(self) -> tuple[float, float]:
        rate = (self.first + self.last) / 2
        return rate, rate

    def pays(self, cost: float, learning_rate: float, gradient_norm: float | None = None) -> bool:
        return int(self._owed(self.step + 1) + 1e-9) > int(self._owed(self.step) + 1e-9)

    def _owed(self, step: int) -> float:
        done = min(step, self.total_steps)
        slope = (self.last - self.first) / self.total_steps
        return self.first * done + slope * done * done / 2 + self.last * (step - done)


class During(CountingSchedule):
    """At each step of a part of the run, such as its last fifth.

    Args:
        begin, end: The part, as shares of the run in [0, 1].
        total_steps: Length of the run; later steps pay if `end` is 1.
        share: As for `CountingSchedule`.

    Raises:
        ConfigError: An argument is out of range.

    Example:
        >>> schedule = During(0.8, 1.0, total_steps=10)
        >>> schedule.pays(1.0, 0.1)
        False
    """

    def __init__(self, begin: float, end: float, *, total_steps: int, share: float = 1.0) -> None:
        super().__init__(share)
        if not 0 <= begin < end <= 1:
            raise ConfigError(
                explain("begin, end", (begin, end), "shares of the run, 0 <= begin < end <= 1", "use 0.8, 1")
            )
        self.begin = begin
        self.end = end
        self.total_steps = check_total_steps(total_steps)

    def declared_rate(self) -> tuple[float, float]:
        return self.end - self.begin, self.end - self.begin

    def pays(self, cost: float, learning_rate: float, gradient_norm: float | None = None) -> bool:
        done = self.step / self.total_steps
        return self.begin - 1e-12 <= done and (done < self.end - 1e-12 or self.end == 1)
