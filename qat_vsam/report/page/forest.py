"""The forest plot: how far each arm stands from SAM of its precision, with the margin of equivalence shaded."""

from __future__ import annotations

from collections.abc import Sequence

from qat_vsam.report.arm import Arm
from qat_vsam.report.formats import joined
from qat_vsam.report.page.cells import TONES
from qat_vsam.report.page.figure import Figure, by_group, ends, told
from qat_vsam.report.page.labels import shorten
from qat_vsam.report.page.palette import role_class
from qat_vsam.report.page.scales import Scale, frame
from qat_vsam.report.page.svg import Drawing, element, line, mark, text

_TITLE = "Difference to SAM of the same precision"
_HEAD, _GAP = 26.0, 12.0


def forest(arms: Sequence[Arm]) -> Figure | None:
    """One row an arm, sorted within its precision; None where no arm has a difference to SAM."""
    rows = [(arm, ends(arm.to_sam)) for arm in arms if arm.to_sam is not None and arm.to_sam.value is not None]
    if not rows:
        return None
    margins = [margin for arm, _ in rows if (margin := _margin(arm))]
    low, high = frame([interval for _, interval in rows])
    # zero and the margins are always in sight
    room = max(1.1 * max(margins, default=0.0), 0.05 * (high - low))
    limits = min(low, -room), max(high, room)
    outside = [arm.label for arm, interval in rows if not limits[0] <= interval[1] <= limits[1]]
    caption = _caption(arms, bool(margins), outside)
    return Figure("differences", _TITLE, caption, lambda width: _draw(rows, limits, width))


def _margin(arm: Arm) -> float | None:
    return arm.verdict.margin if arm.verdict else None


def _caption(arms: Sequence[Arm], shaded: bool, outside: Sequence[str]) -> str:
    sentences = ["Points of test accuracy, paired by seed, with 95 % intervals; the line at zero is SAM."]
    if shaded:
        sentences.append(
            "The shaded band is the margin. The words are tests, Holm-corrected over all claims of the page: "
            "equivalent is what lies surely inside the band, better or worse what lies surely beyond zero, undecided "
            "all else. The intervals drawn are not corrected."
        )
    else:
        sentences.append("No margin is shown, since none was declared and SAM's gain over SGD is not established.")
    missing = [name for name, members in by_group(arms) if all(arm.role != "sam" for arm in members)]
    if missing:
        sentences.append(f"Without a SAM of its own, and so not shown: {joined(missing)}.")
    if outside:
        sentences.append(f"Outside the frame, marked at its edge: {joined(outside)}.")
    return " ".join(sentences)


def _draw(rows: Sequence[tuple[Arm, tuple[float, float, float]]], limits: tuple[float, float], width: float) -> Drawing:
    narrow = width < 600
    # a narrow screen has the words above their line
    left, right = (8.0, width - 8.0) if narrow else (0.25 * width, 0.74 * width)
    height = 38.0 if narrow else 22.0
    groups = by_group([arm for arm, _ in rows])
    known = {arm.name: interval for arm, interval in rows}
    scale = Scale(*limits, left, right)
    ticks = scale.ticks(4 if narrow else 8)
    bottom = sum(_HEAD + height * len(members) + _GAP for _, members in groups)
    drawing = Drawing(width, bottom + 40, _TITLE)
    for tick, words in ticks:
        drawing.add(text(scale(tick), bottom + 16, words if tick <= 0 else f"+{words}", cls="quiet", anchor="middle"))
    drawing.add(text((left + right) / 2, bottom + 34, "points above SAM", cls="quiet", anchor="middle"))
    top = 0.0
    for name, members in groups:
        members = sorted(members, key=lambda arm: -known[arm.name][1])
        margin = next((margin for arm in members if (margin := _margin(arm))), None)
        drawing.add(text(0, top + 16, name + (f", margin ±{margin:.2f}" if margin else ""), cls="strong"))
        first, end = top + _HEAD, top + _HEAD + height * len(members)
        if not narrow:
            drawing.add(*_ground(scale, ticks, margin, first - 4, end + 4))
        for number, arm in enumerate(members):
            middle = first + height * (number + 0.5)
            if narrow:
                drawing.add(*_ground(scale, ticks, margin, middle, middle + 16))
            drawing.add(_row(arm, known[arm.name], scale, middle, width, narrow))
        top = end + _GAP
    return drawing


def _ground(
    scale: Scale, ticks: Sequence[tuple[float, str]], margin: float | None, top: float, bottom: float
) -> list[str]:
    """Grid, margin and zero behind some rows."""
    parts = [line(scale(tick), top, scale(tick), bottom, "grid") for tick, _ in ticks]
    if margin:
        start, stop = scale(-margin), scale(margin)
        parts.append(element("rect", x=start, y=top, width=stop - start, height=bottom - top, cls="band"))
    return [*parts, line(scale(0), top, scale(0), bottom, "zero")]


def _row(
    arm: Arm, interval: tuple[float, float, float], scale: Scale, middle: float, width: float, narrow: bool
) -> str:
    low, value, high = interval
    word = arm.verdict.word if arm.verdict else ""
    numbers = told(arm.to_sam, plus=True) if arm.to_sam else ""
    base, room = (middle - 6, 0.5 * width) if narrow else (middle + 4, 0.24 * width)
    y = middle + 8 if narrow else middle
    cls = TONES.get(word, "quiet")
    parts = [
        element("rect", x=0.0, y=middle - 11, width=width, height=22.0, cls="row"),
        text(0, base, shorten(arm.label, room), cls="strong" if arm.best else ""),
        line(scale(low), y, scale(high), y, "whisker"),
        mark(scale(value), y, _shape(scale, value), "mark"),
    ]
    if narrow:
        parts.append(text(width, base, f"{numbers.split(' [')[0]} {word}", cls=cls, anchor="end"))
    else:
        parts.append(text(0.755 * width, base, numbers, cls="quiet"))
        parts.append(text(width, base, word, cls=cls, anchor="end"))
    return element("g", "".join(parts), title=f"{arm.label}: {numbers} {word}".strip(), cls=role_class(arm.role))


def _shape(scale: Scale, value: float) -> str:
    return "circle" if scale.holds(value) else "diamond"
