"""Timing that survives a busy machine: all workloads in one process, in turn, and ratios within a turn.

Clock speed and background load drift over minutes. Workloads that run one after the other in each round meet
the same drift, so the ratio of two of them within a round is steady where their times are not.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from qat_vsam.errors import ConfigError, explain


@dataclass(frozen=True)
class Timing:
    """Wall-clock times of one workload.

    Attributes:
        times: seconds of each repeat, in order.
    """

    times: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median in seconds."""
        return statistics.median(self.times)

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third quartile in seconds."""
        if len(self.times) < 2:
            return self.times[0], self.times[0]
        first, _, third = statistics.quantiles(self.times, n=4, method="inclusive")
        return first, third


def interleave(
    workloads: Mapping[str, Callable[[], object]],
    repeats: int = 30,
    warmup: int = 5,
    *,
    turns: int = 1,
    synchronize: Callable[[], object] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Timing]:
    """Time workloads in turn, round after round.

    Args:
        workloads: name and function; each is called `(warmup + repeats) * turns` times.
        repeats: timed rounds.
        warmup: rounds that are not timed, for caches, allocators and compilers.
        turns: calls of each workload in a round, whose sum is one time. They too are made in turn, so a load of the
            machine that is shorter than a round meets all workloads alike.
        synchronize: waits for an accelerator, e.g. `torch.cuda.synchronize`; called inside the timed span.
        progress: called after each round with the rounds done and their total.

    Returns:
        The timings by name, in the order given.

    Raises:
        ConfigError: fewer than one repeat or turn, or a negative warm-up.

    Example:
        >>> timings = interleave({"sum": lambda: sum(range(10)), "list": lambda: list(range(10))}, repeats=3)
        >>> {name: len(timing.times) for name, timing in timings.items()}
        {'sum': 3, 'list': 3}
    """
    for key, value, least in (("repeats", repeats, 1), ("warmup", warmup, 0), ("turns", turns, 1)):
        if value < least:
            raise ConfigError(explain(key, value, f"at least {least}", "choose more rounds"))
    rounds: list[dict[str, float]] = []
    for done in range(warmup + repeats):
        spent = dict.fromkeys(workloads, 0.0)
        for _ in range(turns):
            for name, workload in workloads.items():
                start = time.perf_counter()
                workload()
                if synchronize is not None:
                    synchronize()
                spent[name] += time.perf_counter() - start
        rounds.append(spent)
        if progress is not None:
            progress(done + 1, warmup + repeats)
    return {name: Timing(tuple(spent[name] for spent in rounds[warmup:])) for name in workloads}


def median_ratio(numerator: Timing, denominator: Timing) -> float:
    """Median over rounds of the ratio within each round.

    Args:
        numerator: of the same `interleave` call as the denominator.
        denominator: the reference.

    Raises:
        ConfigError: the two have different numbers of rounds.

    Example:
        >>> median_ratio(Timing((2.0, 4.0, 9.0)), Timing((1.0, 2.0, 3.0)))
        2.0
    """
    if len(numerator.times) != len(denominator.times):
        raise ConfigError(
            explain(
                "timings",
                f"{len(numerator.times)} and {len(denominator.times)} rounds",
                "as many rounds for both",
                "take both from one call of interleave",
            )
        )
    return statistics.median(a / b for a, b in zip(numerator.times, denominator.times, strict=True))
