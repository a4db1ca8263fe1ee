"""Accuracy against the cost of training: all precisions on one axis, whiskers both ways, labels where there is room."""

from __future__ import annotations

from collections.abc import Sequence

from qat_vsam.report.arm import Arm
from qat_vsam.report.formats import joined
from qat_vsam.report.page.figure import Figure, by_group, ends, told
from qat_vsam.report.page.labels import Box, place, shorten, text_width
from qat_vsam.report.page.palette import role_class
from qat_vsam.report.page.scales import Scale, frame, span
from qat_vsam.report.page.svg import SHAPES, Drawing, element, line, mark, text
from qat_vsam.report.statistics import Estimate

_TITLE = "Accuracy against the cost of training"
# who is named first where not all names find a place
_RANK = {"vsam": 0, "sam": 1, "sgd": 2, "split_sgd": 3}
# of more points than this only the references, VSAM and the best are named, and captions count what they can't list
_MOST_NAMED, _MOST_LISTED = 24, 6
Point = tuple[Arm, tuple[float, float, float], tuple[float, float, float]]


def trade_off(arms: Sequence[Arm]) -> Figure | None:
    """Accuracy against time where a bench measured it, else against gradients; None for fewer than two points."""
    timed = [(arm, arm.run_time) for arm in arms if arm.run_time is not None]
    counted = [(arm, Estimate(arm.run_gradients)) for arm in arms if arm.run_gradients is not None]
    costs = timed if len(timed) > 1 else counted
    points: list[Point] = [
        (arm, ends(cost), ends(arm.accuracy))
        for arm, cost in costs
        if cost.value is not None and arm.accuracy.value is not None
    ]
    if len(points) < 2:
        return None
    unit = "time" if len(timed) > 1 else "gradient evaluations"
    across, up = span([x for _, x, _ in points], pad=0.08), frame([y for _, _, y in points], pad=0.06)
    caption = _caption(points, unit, up, across)
    return Figure("accuracy_vs_cost", _TITLE, caption, lambda width: _draw(points, unit, across, up, width))


def _caption(points: Sequence[Point], unit: str, up: tuple[float, float], across: tuple[float, float]) -> str:
    whiskers = "Whiskers are 95 % intervals"
    if any(low < high for _, (low, _, high), _ in points):
        whiskers += ", of the cost too"
    elif unit != "time":
        whiskers += "; gradient evaluations are counted and have none"
    sentences = [f"The {unit} of a whole run in float32 SGD runs, for all precisions alike. {whiskers}."]
    known = {arm.name: interval for arm, _, interval in points}
    for group, members in by_group([arm for arm, _, _ in points]):
        best = max(members, key=lambda arm: (round(known[arm.name][1], 9), arm.best))
        low, _, high = known[best.name]
        close = [a for a in members if a is not best and known[a.name][2] >= low and known[a.name][0] <= high]
        if close:
            named = joined(arm.method_label for arm in close[:_MOST_LISTED])
            more = f"; and {len(close) - _MOST_LISTED} more" if len(close) > _MOST_LISTED else ""
            sentences.append(
                f"At {group} the intervals of these overlap with that of the highest, {joined([best.method_label])}: "
                f"{named}{more}."
            )
    sentences.append(
        "Whether two arms differ is told by their paired difference, not by overlap. A mark without a name shows it to "
        "the pointer."
    )
    strays = [a.label for a, x, y in points if not (up[0] <= y[1] <= up[1] and across[0] <= x[1] <= across[1])]
    if strays:
        sentences.append(f"Outside the frame: {joined(strays)}.")
    return " ".join(sentences)


def _draw(
    points: Sequence[Point], unit: str, across: tuple[float, float], up: tuple[float, float], width: float
) -> Drawing:
    height = 420.0 if width < 600 else 500.0
    left, right, top, bottom = 46.0, width - 12.0, 34.0, height - 46.0
    x, y = Scale(*across, left, right), Scale(*up, bottom, top)
    drawing = Drawing(width, height, _TITLE)
    for tick, words in y.ticks(6):
        drawing.add(line(left, y(tick), right, y(tick), "grid"))
        drawing.add(text(left - 6, y(tick) + 4, words, cls="quiet", anchor="end"))
    for tick, words in x.ticks(5 if width < 600 else 9):
        drawing.add(line(x(tick), bottom, x(tick), bottom + 4, "zero"))
        drawing.add(text(x(tick), bottom + 18, words, cls="quiet", anchor="middle"))
    drawing.add(line(left, bottom, right, bottom, "zero"))
    named = f"{unit} of a run, in float32 SGD runs"
    drawing.add(text((left + right) / 2, bottom + 38, named, cls="quiet", anchor="middle"))
    shapes = _shapes(points)
    _legend(drawing, shapes, left)
    shown = [p for p in points if x.holds(p[1][1]) and y.holds(p[2][1])]
    for arm, cost, accuracy in sorted(shown, key=lambda p: p[0].role == "vsam"):
        parts = [
            line(x(cost[1]), y(accuracy[0]), x(cost[1]), y(accuracy[2]), "whisker"),
            line(x(cost[0]), y(accuracy[1]), x(cost[2]), y(accuracy[1]), "whisker") if cost[0] < cost[2] else "",
            mark(x(cost[1]), y(accuracy[1]), shapes[arm.group], "mark"),
        ]
        title = f"{arm.label}: {told(arm.accuracy)} %, {unit} {cost[1]:.2f}"
        drawing.add(element("g", "".join(parts), title=title, cls=role_class(arm.role)))
    _labels(drawing, shown, x, y, Box(left, top - 6, width, bottom - 2))
    return drawing


def _shapes(points: Sequence[Point]) -> dict[str, str]:
    shapes = list(SHAPES)
    groups = [name for name, _ in by_group([arm for arm, _, _ in points])]
    return {name: shapes[number % len(shapes)] for number, name in enumerate(groups)}


def _legend(drawing: Drawing, shapes: dict[str, str], left: float) -> None:
    drawing.add(text(0, 14, "test accuracy, %", cls="quiet"))
    if len(shapes) < 2:
        return
    at = max(left, 110.0) + 20
    for name, shape in shapes.items():
        drawing.add(element("g", mark(at, 10, shape, "mark"), cls=role_class("sam")))
        words = shorten(name, 90)
        drawing.add(text(at + 10, 14, words))
        at += 34 + text_width(words)


def _labels(drawing: Drawing, shown: Sequence[Point], x: Scale, y: Scale, inside: Box) -> None:
    """Names beside the marks; those that find no free place are left to the pointer."""
    obstacles = []
    for _, cost, accuracy in shown:
        at, level = x(cost[1]), y(accuracy[1])
        obstacles.append(Box(at - 6, level - 6, at + 6, level + 6))
        obstacles.append(Box(at - 3, y(accuracy[2]), at + 3, y(accuracy[0])))
        obstacles.append(Box(x(cost[0]), level - 3, x(cost[2]), level + 3))
    few = len(shown) <= _MOST_NAMED
    named = [point for point in shown if few or point[0].role in _RANK or point[0].best]
    order = sorted(named, key=lambda p: (_RANK.get(p[0].role, 4), not p[0].best))
    wanted = [(shorten(arm.label, 0.4 * (inside.right - inside.left)), x(c[1]), y(a[1])) for arm, c, a in order]
    for (_, at, level), label in zip(wanted, place(wanted, obstacles, inside), strict=True):
        if label is None:
            continue
        if label.far:
            near = min(max(at, label.x), label.x + text_width(label.text))
            edge = min(max(level, label.y - 10), label.y + 3)
            drawing.add(line(at, level, near, edge, "leader"))
        drawing.add(text(label.x, label.y, label.text))
