"""Random numbers that are a pure function of a seed and a count."""

from __future__ import annotations

_MASK = (1 << 64) - 1


def counter_uniform(seed: int, counter: int) -> float:
    """A uniform number in [0, 1) that depends on (seed, counter) alone, by two rounds of SplitMix64.

    No generator has to be saved, and all ranks of a distributed run draw the same.

    Example:
        >>> counter_uniform(0, 5) == counter_uniform(0, 5) != counter_uniform(1, 5)
        True
    """
    return (_mixed(_mixed(seed & _MASK) + counter) >> 11) * 2.0**-53


def _mixed(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
