"""Learning curves: validation accuracy and training loss by epoch, where there are enough points for a curve."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from qat_vsam.report.arm import Arm
from qat_vsam.report.page.figure import Figure, by_group
from qat_vsam.report.page.labels import shorten, spread
from qat_vsam.report.page.palette import ROLES, role_class
from qat_vsam.report.page.scales import Scale, frame, log_ticks
from qat_vsam.report.page.svg import Drawing, element, line, polyline, text
from qat_vsam.report.statistics import CONFIDENCE

_TITLE = "Learning curves"
_LEAST_POINTS = 3
# more points cannot be told apart at page width, and more curves not in one panel
_MOST_POINTS, _MOST_CURVES = 100, 6
_RANK = {"sgd": 0, "sam": 1, "vsam": 2, "split_sgd": 3}
_STYLES = ("", " dashed", " dotted")


@dataclass(frozen=True)
class Curve:
    """The mean over seeds by epoch, with the ends of its 95 % interval (the mean itself for one seed)."""

    arm: Arm
    style: str
    epochs: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Panel:
    """One pair of axes; `log` draws the decimal logarithm of positive values."""

    title: str
    curves: tuple[Curve, ...]
    log: bool = False


def learning_curves(arms: Sequence[Arm], epochs: pd.DataFrame) -> Figure | None:
    """Two panels a precision; None where no arm was validated in three epochs."""
    if epochs.empty:
        return None
    rows = []
    few = False
    for group, members in by_group(arms):
        accuracy = _curves(members, epochs, "validation_accuracy", 100.0)
        few = few or len(accuracy) > _MOST_CURVES
        accuracy = _chosen(accuracy)
        if not accuracy:
            continue
        loss = _curves([curve.arm for curve in accuracy], epochs, "train_loss", 1.0)
        log = bool(loss) and min(float(curve.mean.min()) for curve in loss) > 0
        panels = [Panel(f"{group}: validation accuracy, %", tuple(accuracy))]
        if loss:
            panels.append(Panel(f"{group}: training loss" + (", log scale" if log else ""), tuple(loss), log))
        rows.append(panels)
    if not rows:
        return None
    caption = (
        "Means over seeds by epoch, counted from 1; the shade is the 95 % interval of the mean. The steep beginning "
        "may leave the frame, so that the end can be read."
    )
    if few:
        caption += f" Of each precision {_MOST_CURVES} arms at most: the references and VSAM, then the most accurate."
    return Figure("learning_curves", _TITLE, caption, lambda width: _draw(rows, width))


def _curves(arms: Sequence[Arm], epochs: pd.DataFrame, column: str, unit: float) -> list[Curve]:
    known = epochs[epochs[column].notna() & epochs["arm"].isin([arm.name for arm in arms])]
    table = known.groupby(["arm", "epoch"])[column].agg(["mean", "std", "count"])
    curves = []
    styles: dict[str, int] = {}
    # the plain method of a colour has the plain line
    for arm in sorted(arms, key=lambda arm: len(arm.method)):
        if arm.name not in table.index:
            continue
        rows = table.loc[arm.name]
        if len(rows) < _LEAST_POINTS:
            continue
        rows = rows.iloc[_spread_indices(len(rows))]
        mean, count = unit * rows["mean"].to_numpy(float), rows["count"].to_numpy(float)
        quantile = stats.t.ppf(0.5 + CONFIDENCE / 2, np.maximum(count - 1, 1))
        reach = np.nan_to_num(unit * rows["std"].to_numpy(float) / np.sqrt(count) * quantile)
        # arms of one colour differ by their dashes
        colour = ROLES.get(arm.role, "")
        style = styles[colour] = styles.get(colour, -1) + 1
        numbers = rows.index.to_numpy(float)
        curves.append(Curve(arm, _STYLES[style % len(_STYLES)], numbers, mean, mean - reach, mean + reach))
    return curves


def _spread_indices(count: int) -> list[int]:
    if count <= _MOST_POINTS:
        return list(range(count))
    return sorted({round(index) for index in np.linspace(0, count - 1, _MOST_POINTS)})


def _chosen(curves: Sequence[Curve]) -> list[Curve]:
    ranked = sorted(curves, key=lambda curve: (_RANK.get(curve.arm.role, 4), -float(curve.mean[-1])))
    return ranked[:_MOST_CURVES]


def _draw(rows: Sequence[Sequence[Panel]], width: float) -> Drawing:
    columns = 1 if width < 600 else 2
    each, height = width / columns, 290.0
    lines = sum(math.ceil(len(panels) / columns) for panels in rows)
    drawing = Drawing(width, lines * height, _TITLE)
    top = 0.0
    for panels in rows:
        for number, panel in enumerate(panels):
            column, down = number % columns, number // columns
            drawing.add(*_panel(panel, column * each, top + down * height, each, height))
        top += math.ceil(len(panels) / columns) * height
    return drawing


def _panel(panel: Panel, left: float, top: float, width: float, height: float) -> list[str]:
    room = 0.27 * width
    value: Callable[[float], float] = (lambda number: math.log10(max(number, 1e-12))) if panel.log else float
    last = max(float(curve.epochs[-1]) for curve in panel.curves)
    x = Scale(1.0, max(last, 2.0), left + 46, left + width - room - 8)
    limits = _limits(panel, value)
    y = Scale(*limits, top + height - 64, top + 30)
    parts = [text(left, top + 14, panel.title, cls="strong")]
    for tick, words in log_ticks(y) if panel.log else y.ticks(5):
        parts.append(line(x.start, y(tick), x.stop, y(tick), "grid"))
        parts.append(text(x.start - 6, y(tick) + 4, words, cls="quiet", anchor="end"))
    for tick in _epoch_ticks(last):
        parts.append(line(x(tick), y.start, x(tick), y.start + 4, "zero"))
        parts.append(text(x(tick), y.start + 18, f"{tick:g}", cls="quiet", anchor="middle"))
    parts.append(line(x.start, y.start, x.stop, y.start, "zero"))
    parts.append(text((x.start + x.stop) / 2, y.start + 34, "epoch", cls="quiet", anchor="middle"))
    for curve in panel.curves:
        parts.append(_curve(curve, x, y, value))
    return parts + _names(panel, x, y, value, room)


def _limits(panel: Panel, value: Callable[[float], float]) -> tuple[float, float]:
    """The frame of the whole curves, or of their second half with as much of the first as does not dwarf it."""
    early = [value(number) for curve in panel.curves for number in curve.mean]
    if panel.log:
        kept = early
    else:
        late = [
            value(number)
            for curve in panel.curves
            for ends in (curve.low, curve.mean, curve.high)
            for number in ends[len(curve.mean) // 2 :]
        ]
        low, high = min(late), max(late)
        room = 2 * (high - low) or 1.0
        kept = [min(max(number, low - room), high + room) for number in early] + late
    return frame([(number, number, number) for number in (min(kept), max(kept))])


def _curve(curve: Curve, x: Scale, y: Scale, value: Callable[[float], float]) -> str:
    across = [x(float(epoch)) for epoch in curve.epochs]
    upper = [(at, y(value(number))) for at, number in zip(across, curve.high, strict=True)]
    lower = [(at, y(value(number))) for at, number in zip(across, curve.low, strict=True)]
    middle = [(at, y(value(number))) for at, number in zip(across, curve.mean, strict=True)]
    # what leaves the frame runs along its edge, and is no part of the line
    inside = [point for point, number in zip(middle, curve.mean, strict=True) if y.holds(value(number))]
    shade = ""
    if (curve.high > curve.low).any():
        corners = " ".join(f"{at:.1f},{level:.1f}" for at, level in [*upper, *reversed(lower)])
        shade = element("polygon", points=corners, cls="spread")
    title = f"{curve.arm.label}: {curve.mean[-1]:.4g} at epoch {curve.epochs[-1]:g}"
    drawn = shade + polyline(inside, "curve" + curve.style)
    return element("g", drawn, title=title, cls=role_class(curve.arm.role))


def _names(panel: Panel, x: Scale, y: Scale, value: Callable[[float], float], room: float) -> list[str]:
    levels = [y(value(float(curve.mean[-1]))) for curve in panel.curves]
    parts = []
    for curve, level, base in zip(panel.curves, levels, spread(levels, 15, y.stop, y.start), strict=True):
        at = x(float(curve.epochs[-1]))
        parts.append(line(at + 2, level, x.stop + 14, base, "leader"))
        parts.append(text(x.stop + 18, base + 4, shorten(curve.arm.method_label, room - 12)))
    return parts


def _epoch_ticks(last: float) -> list[float]:
    """1, round epochs between, and the last."""
    between = [tick for tick, _ in Scale(0.0, last, 0.0, 1.0).ticks(5) if last / 10 < tick < last * 0.93]
    return [1.0, *(tick for tick in between if tick == int(tick)), last] if last > 1 else [1.0]
