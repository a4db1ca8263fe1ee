"""A figure of a page: drawn twice, for wide and for narrow screens, and once as a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qat_vsam.report.arm import Arm
from qat_vsam.report.formats import interval, signed
from qat_vsam.report.page.svg import Drawing
from qat_vsam.report.statistics import Estimate

WIDE, NARROW = 1136.0, 368.0


@dataclass(frozen=True)
class Figure:
    """A figure with its title and caption; `draw` draws it at a width in pixels."""

    name: str
    title: str
    caption: str
    draw: Callable[[float], Drawing]

    @property
    def wide(self) -> Drawing:
        """For screens and files."""
        return self.draw(WIDE)

    @property
    def narrow(self) -> Drawing:
        """For telephones."""
        return self.draw(NARROW)


def by_group(arms: Sequence[Arm]) -> list[tuple[str, list[Arm]]]:
    """The arms of each precision, in the order of the table."""
    groups: dict[str, list[Arm]] = {}
    for arm in arms:
        groups.setdefault(arm.group, []).append(arm)
    return list(groups.items())


def ends(estimate: Estimate) -> tuple[float, float, float]:
    """(low, value, high) of an estimate that has a value; without an interval all three are the value."""
    if estimate.value is None:
        raise ValueError("an estimate without a value has no ends")
    value = estimate.value
    low, high = estimate.low, estimate.high
    return (value, value, value) if low is None or high is None else (low, value, high)


def told(estimate: Estimate, *, plus: bool = False) -> str:
    """An estimate with its interval, in words."""
    if estimate.value is None:
        return estimate.note
    value = signed(estimate.value) if plus else f"{estimate.value:.2f}"
    return f"{value} {interval(estimate, plus=plus)}"
