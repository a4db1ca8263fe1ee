r"""The published vSAM schedule: pay more often while the PSF's norm spreads and outgrows the gradient's.

With H_j = |h| and G_j = |g| at the j-th step that paid, over windows of K steps:

    S = the last K of H,   R = the last K of H/G
    V_j = mean over 5 blocks of the variance of sort(S) in that block
    s <- clamp(s (1 + a d(R) + b d(V)), 1, floor(cap K))
    d = mean relative change of successive entries, in [-1, 1]

and a window then pays for about s of its K steps: at random first, the rest of floor(s) at its end.
Reference: arXiv 2403.08821.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from qat_vsam.errors import ConfigError, did_you_mean, explain
from qat_vsam.optim.counter import counter_uniform
from qat_vsam.optim.schedule import Schedule

BIASES = ("relative", "log")


class VarianceSchedule(Schedule):
    r"""The published schedule, with its decisions for given uniform numbers.

    Counting f = 1, 2, ... from the end of the warm-up, n the payments in the window so far, p the rate (0.5
    at first, then s / K), a step pays iff

        n < floor(s) and u >= 1 - p   (u drawn only if n < floor(s)),     or     K - (f mod K) <= floor(s) - n

    and whenever f is a multiple of K, s and p are renewed and n is 0. All steps of the warm-up pay; it
    leaves n at 1.

    Where the published code divides 0 by 0 or reads past its lists (short warm-ups), the changes are taken
    over measured entries only, and fewer than two of them change nothing.

    Args:
        warmup_steps: Steps of plain SAM at the beginning (published: those of 3 epochs).
        window: K, steps.
        blocks: Equal blocks of the sorted norms; divides the window into blocks of at least 2.
        cap: Largest rate.
        gains: (a, b), the weights of the two changes (published recipe: 0.13 both; its class default: 0.01).
        norm_tensors: Number of last parameter tensors whose norms are measured (10; class default: 2).
        bias: "relative" takes d as the mean of (x' - x) / x, as published; noise alone then drives s up
            (Jensen's inequality). "log" takes the mean of log(x' / x), which noise leaves where it is.
        initial_payments: s at the beginning.
        seed: Seed of the counter-based generator.
        uniform: A function of the step (0, 1, ... from the very first) in place of that generator, whose seed
            stays 0 then.

    Raises:
        ConfigError: An argument is out of range, or a seed is given beside `uniform`.

    Example:
        >>> schedule = VarianceSchedule(warmup_steps=2)
        >>> paid = []
        >>> for step in range(53):
        ...     paid.append(schedule.pays(1.0, 0.1))
        ...     schedule.advance(1.0 * paid[-1], 0.1)
        >>> sum(paid[:2]), sum(paid[2:51])
        (2, 0)

    Reference: arXiv 2403.08821 and the code its authors published.
    """

    _state = ("step", "position", "payments", "rate", "paid_in_window", "psf_norms", "ratios", "variances")

    def __init__(
        self,
        *,
        warmup_steps: int,
        window: int = 50,
        blocks: int = 5,
        cap: float = 0.8,
        gains: Sequence[float] = (0.13, 0.13),
        norm_tensors: int = 10,
        bias: str = "relative",
        initial_payments: float = 1.0,
        seed: int = 0,
        uniform: Callable[[int], float] | None = None,
    ) -> None:
        if warmup_steps < 0:
            raise ConfigError(explain("warmup_steps", warmup_steps, "a number of steps >= 0", "use 3 epochs' steps"))
        if blocks < 1 or window % blocks or window < 2 * blocks:
            rule = f"a multiple of blocks={blocks}, at least twice as large"
            raise ConfigError(explain("window", window, rule, "use window=50, blocks=5"))
        if not 1 <= int(cap * window) <= window:
            raise ConfigError(explain("cap", cap, f"a rate in [1/{window}, 1]", "use 0.8"))
        if not 1 <= initial_payments <= int(cap * window):
            rule = f"steps in [1, {int(cap * window)}]"
            raise ConfigError(explain("initial_payments", initial_payments, rule, "use 1"))
        if len(gains) != 2:
            raise ConfigError(explain("gains", gains, "two numbers, a and b", "use gains=(0.13, 0.13)"))
        if norm_tensors < 1:
            raise ConfigError(explain("norm_tensors", norm_tensors, "at least one tensor", "use 10"))
        if bias not in BIASES:
            raise ConfigError(explain("bias", repr(bias), "a way to average changes", did_you_mean(str(bias), BIASES)))
        if uniform is not None and seed:
            raise ConfigError(explain("seed", seed, "0 beside uniform=, which takes its place", "give one of the two"))
        self.warmup_steps = warmup_steps
        self.window = window
        self.blocks = blocks
        self.cap = int(cap * window)
        self.gains = tuple(gains)
        self.norm_tensors = norm_tensors
        self.bias = bias
        self._uniform = uniform
        self.seed = seed
        self.step = 0
        self.position = 1
        self.payments = float(initial_payments)
        self.rate = 0.5
        self.paid_in_window = 0
        self.psf_norms: list[float] = []
        self.ratios: list[float] = []
        self.variances: list[float] = []

    def pays(self, cost: float, learning_rate: float, gradient_norm: float | None = None) -> bool:
        if self.step < self.warmup_steps:
            return True
        due = int(self.payments) - self.paid_in_window
        if due > 0 and self._draw() >= 1 - self.rate:
            return True
        return self.window - self.position % self.window <= due

    def advance(self, paid: float, learning_rate: float, gradient_norm: float | None = None) -> None:
        self.step += 1
        if self.step <= self.warmup_steps:
            self.paid_in_window = 1 if paid else 0
            return
        self.paid_in_window += 1 if paid else 0
        self.position += 1
        if self.position % self.window == 0:
            a, b = self.gains
            growth = 1 + a * self._mean_change(self.ratios) + b * self._mean_change(self.variances)
            self.payments = min(max(self.payments * growth, 1.0), float(self.cap))
            self.rate = self.payments / self.window
            self.paid_in_window = 0

    @property
    def wants_measurements(self) -> bool:
        return self.step >= self.warmup_steps and (self.position + 1) % self.window == 0

    def measure(self, psf_norm: float, gradient_norm: float) -> None:
        """Append H and H/G, and the variance that follows; a value that is not finite is left out."""
        ratio = psf_norm / gradient_norm if gradient_norm > 0 else math.nan
        if not (math.isfinite(psf_norm) and math.isfinite(ratio)):
            return
        self._append(self.psf_norms, psf_norm)
        self._append(self.ratios, ratio)
        self._append(self.variances, self._blockwise_variance())

    def statistics(self) -> dict[str, float]:
        """`rate` is s / K, `payments` s."""
        return {"rate": self.payments / self.window, "payments": self.payments}

    def _draw(self) -> float:
        return counter_uniform(self.seed, self.step) if self._uniform is None else self._uniform(self.step)

    def _append(self, entries: list[float], value: float) -> None:
        entries.append(value)
        del entries[: -self.window]

    def _blockwise_variance(self) -> float:
        # The published list starts as K zeros, which count in the variances until they are displaced.
        ordered = sorted([0.0] * (self.window - len(self.psf_norms)) + self.psf_norms)
        size = self.window // self.blocks
        return sum(_variance(ordered[i : i + size]) for i in range(0, self.window, size)) / self.blocks

    def _mean_change(self, entries: Sequence[float]) -> float:
        pairs = [(x, y) for x, y in itertools.pairwise(entries) if x > 0 and y > 0]
        if self.bias == "log":
            changes = [math.log(y) - math.log(x) for x, y in pairs]
        else:
            changes = [(y - x) / x for x, y in pairs]
        mean = sum(changes) / len(changes) if changes else 0.0
        return min(max(mean, -1.0), 1.0) if math.isfinite(mean) else 0.0


def _variance(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return sum((value - mean) * (value - mean) for value in values) / (len(values) - 1)
