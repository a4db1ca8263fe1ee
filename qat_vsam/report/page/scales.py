"""Axes of figures: where a value lies, which ticks it has, and which frame leaves stray values outside."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """A linear scale from values [low, high] to positions [start, stop]."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        """The position of a value; one outside lies at the nearer end."""
        inside = min(max(value, self.low), self.high)
        return self.start + (inside - self.low) / (self.high - self.low) * (self.stop - self.start)

    def holds(self, value: float) -> bool:
        """Whether a value lies in the frame."""
        return self.low <= value <= self.high

    def ticks(self, most: int = 6) -> list[tuple[float, str]]:
        """Round values inside the frame, at most `most`, with how each is written.

        Example:
            >>> Scale(94.9, 96.6, 0, 100).ticks(4)
            [(95.0, '95.0'), (95.5, '95.5'), (96.0, '96.0'), (96.5, '96.5')]
        """
        step = _round_step((self.high - self.low) / max(most, 1))
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        values = [number * step for number in range(first, last + 1)]
        return [(value, f"{value + 0.0:.{digits}f}".replace("-", "\N{MINUS SIGN}")) for value in values]


def span(intervals: Sequence[tuple[float, float, float]], *, pad: float = 0.05) -> tuple[float, float]:
    """The frame of an axis that leaves nothing outside, with room at both ends as a share of it."""
    low, high = min(low for low, _, _ in intervals), max(high for _, _, high in intervals)
    margin = pad * (high - low) if high > low else 0.5
    return low - margin, high + margin


def frame(intervals: Sequence[tuple[float, float, float]], *, pad: float = 0.05) -> tuple[float, float]:
    """The frame of an axis: all values but strays, and their intervals as far as those do not dwarf the values.

    A value is a stray where it lies more than four times the middle half of all values away from that half.

    Args:
        intervals: (low, value, high) of each mark.
        pad: room at both ends, as a share of the frame.

    Example:
        >>> low, high = frame([(95.0, 95.2, 95.4), (95.8, 96.0, 96.2), (9.0, 9.6, 10.2)], pad=0)
        >>> round(low, 1), round(high, 1)
        (95.0, 96.2)
    """
    values = sorted(value for _, value, _ in intervals)
    middle = statistics.median(values)
    distances = sorted(abs(value - middle) for value in values)
    width = statistics.median([high - low for low, _, high in intervals])
    reach = 4 * max(2 * statistics.median(distances), width, 1e-9 * max(1.0, abs(middle)))
    kept = [interval for interval in intervals if abs(interval[1] - middle) <= reach]
    low, high = min(value for _, value, _ in kept), max(value for _, value, _ in kept)
    room = 3 * max(high - low, 1.5 * width)
    low = max(min(end for end, _, _ in kept), low - room)
    high = min(max(end for _, _, end in kept), high + room)
    return span([(low, low, high)], pad=pad)


def _round_step(rough: float) -> float:
    """The least of 1, 2, 2.5, 5 times a power of ten that is not below `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def log_ticks(scale: Scale) -> list[tuple[float, str]]:
    """Ticks of a scale of decimal logarithms: 1, 2 and 5 times the powers of ten, or the powers alone.

    Example:
        >>> [words for _, words in log_ticks(Scale(-1.1, 0.4, 0, 100))]
        ['0.1', '0.2', '0.5', '1', '2']
    """
    decades = range(math.floor(scale.low), math.ceil(scale.high) + 1)
    factors = (1, 2, 5) if scale.high - scale.low < 2.5 else (1,)
    values = [factor * 10.0**decade for decade in decades for factor in factors]
    return [(math.log10(value), f"{value:g}") for value in values if scale.holds(math.log10(value))]
