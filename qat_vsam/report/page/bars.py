"""The small interval bars inside the table, all on one axis."""

from __future__ import annotations

from collections.abc import Sequence

from qat_vsam.report.arm import Arm
from qat_vsam.report.names import FLOAT
from qat_vsam.report.page.figure import ends, told
from qat_vsam.report.page.palette import role_class
from qat_vsam.report.page.scales import Scale, frame, span
from qat_vsam.report.page.svg import Drawing, element, line, mark, text

_WIDTH, _HEIGHT = 132.0, 20.0
_SIDE = 6.0
# half the height of a whisker's ends: above and below the mark, so that the narrowest interval still shows
_CAP = 7.0


class Bars:
    """Draws the accuracy of one arm after the other on the axis that all share.

    Args:
        arms: that share the axis.
        whole: whether it leaves no stray value outside, as it should where arms are few.
    """

    def __init__(self, arms: Sequence[Arm], *, whole: bool = False) -> None:
        known = [ends(arm.accuracy) for arm in arms if arm.accuracy.value is not None]
        low, high = (span if whole else frame)(known) if known else (0.0, 100.0)
        self._scale = Scale(max(low, 0.0), min(high, 100.0) if high > 100 > low else high, _SIDE, _WIDTH - _SIDE)
        sams = [arm for arm in arms if arm.role == "sam" and arm.precision == FLOAT]
        self._reference = sams[0].accuracy.value if sams else None
        self._outside = any(not self._scale.holds(value) for _, value, _ in known)

    @property
    def dotted(self) -> str:
        """What the dotted line is; "" where there is none."""
        return "" if self._reference is None else "dotted: float32 SAM"

    @property
    def legend(self) -> str:
        """What the reader must know of the line and the marks, in sentences."""
        line = "The dotted line is float32 SAM." if self._reference is not None else ""
        return f"{line} {'A diamond at an end lies outside the axis.' if self._outside else ''}".strip()

    @property
    def axis(self) -> str:
        """The axis, for the head of the column."""
        drawing = Drawing(_WIDTH, _HEIGHT, "axis of the intervals below")
        drawing.add(line(_SIDE, _HEIGHT - 1, _WIDTH - _SIDE, _HEIGHT - 1, "grid"))
        for tick, words in self._scale.ticks(4):
            at = self._scale(tick)
            drawing.add(line(at, _HEIGHT - 4, at, _HEIGHT, "zero"))
            drawing.add(text(min(max(at, 14.0), _WIDTH - 14.0), _HEIGHT - 7, words, cls="quiet", anchor="middle"))
        return drawing.inline("bar")

    def __call__(self, arm: Arm) -> str:
        """One arm's bar; empty where it has no accuracy. A diamond at an end marks a value outside the axis."""
        if arm.accuracy.value is None:
            return ""
        low, value, high = ends(arm.accuracy)
        scale, middle = self._scale, _HEIGHT / 2
        drawing = Drawing(_WIDTH, _HEIGHT, f"{arm.label}: {told(arm.accuracy)} %")
        if self._reference is not None:
            at = scale(self._reference)
            drawing.add(element("g", line(at, 0, at, _HEIGHT, "reference"), title="float32 SAM"))
        shape = "circle" if scale.holds(value) else "diamond"
        parts = line(scale(low), middle, scale(high), middle, "whisker")
        if low < high:
            parts += "".join(
                line(scale(end), middle - _CAP, scale(end), middle + _CAP, "whisker")
                for end in (low, high)
                if scale.holds(end)
            )
        parts += mark(scale(value), middle, shape, "mark", 3)
        drawing.add(element("g", parts, title=f"{arm.label}: {told(arm.accuracy)} %", cls=role_class(arm.role)))
        return drawing.inline("bar")
