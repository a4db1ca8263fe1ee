"""Latency of one call, as a user of the model would see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from qat_vsam.evaluate.bench import interleave


@dataclass(frozen=True)
class LatencyResult:
    """Milliseconds of a call.

    Attributes:
        median_ms: median.
        first_quartile_ms: a quarter of the calls is faster.
        third_quartile_ms: a quarter of the calls is slower.
        n: number of timed calls.
    """

    median_ms: float
    first_quartile_ms: float
    third_quartile_ms: float
    n: int


def latency(
    model: Callable[[Tensor], object],
    x: Tensor,
    repeats: int = 30,
    warmup: int = 5,
    *,
    synchronize: Callable[[], object] | None = None,
) -> LatencyResult:
    """Time `model(x)`.

    Args:
        model: a module in evaluation mode, or an exported file in its runtime.
        x: one input batch.
        repeats: timed calls.
        warmup: calls before them.
        synchronize: waits for an accelerator, e.g. `torch.cuda.synchronize`.

    Raises:
        ConfigError: fewer than one repeat, or a negative warm-up.

    Example:
        >>> import torch
        >>> latency(torch.nn.Identity(), torch.zeros(1), repeats=7).n
        7
    """
    timing = interleave({"call": lambda: model(x)}, repeats, warmup, synchronize=synchronize)["call"]
    first, third = timing.quartiles
    return LatencyResult(timing.median * 1e3, first * 1e3, third * 1e3, len(timing.times))
