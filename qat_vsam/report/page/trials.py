"""The tuning panel: every trial's validation accuracy, the chosen one ringed, the edge of its grid marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from qat_vsam.report.arm import Arm
from qat_vsam.report.page.figure import Figure
from qat_vsam.report.page.labels import shorten
from qat_vsam.report.page.scales import Scale, frame
from qat_vsam.report.page.svg import Drawing, element, line, text

_TITLE = "Trials: how settings were chosen"
_OTHER = ("arm", "seed", "validation_accuracy", "diverged", "chosen", "at_edge")
Row = tuple[str, list[tuple[str, float, bool]], str]


def trials(arms: Sequence[Arm], table: pd.DataFrame, fairness: str = "") -> Figure | None:
    """One row a tuned arm; None where nothing was tuned.

    Args:
        arms: for the labels and the order.
        table: `Study.trials`, a row a trial.
        fairness: whether all arms had the same chances, for the caption.
    """
    rows = [_row(arm, table[table["arm"] == arm.name]) for arm in arms if (table["arm"] == arm.name).any()]
    if not rows:
        return None
    values = [value for _, dots, _ in rows for _, value, _ in dots]
    limits = frame([(value, value, value) for value in values])
    outside = sum(not limits[0] <= value <= limits[1] for value in values)
    caption = (
        "Each dot is one setting's validation accuracy, mean over the trials' own seeds, which no final run has. The "
        "ring marks the chosen one; “edge” marks a choice at the end of its grid, beyond which a better one may lie."
    )
    if outside:
        caption += f" {outside} of {len(values)} settings lie outside the frame, at its left or right end."
    caption += f" {fairness}" if fairness else ""
    return Figure("trials", _TITLE, caption, lambda width: _draw(rows, limits, width))


def _row(arm: Arm, table: pd.DataFrame) -> Row:
    keys = [key for key in table.columns if key not in _OTHER and table[key].notna().any()]
    settings = [described({key: row[key] for key in keys if pd.notna(row[key])}) for _, row in table.iterrows()]
    means = table.assign(setting=settings).groupby("setting", sort=False)
    dots = [
        (str(setting), 100 * float(rows["validation_accuracy"].mean()), bool(rows["chosen"].any()))
        for setting, rows in means
    ]
    edges = [str(edge) for edge in table.loc[table["chosen"], "at_edge"] if edge]
    return arm.label, dots, described(dict.fromkeys(edges[0].split(), "")) if edges else ""


def _draw(rows: Sequence[Row], limits: tuple[float, float], width: float) -> Drawing:
    narrow = width < 600
    left, right = (8.0, width - 8.0) if narrow else (0.22 * width, 0.66 * width)
    height = 50.0 if narrow else 24.0
    bottom = height * len(rows) + 8
    scale = Scale(*limits, left, right)
    drawing = Drawing(width, bottom + 40, _TITLE)
    for tick, words in scale.ticks(4 if narrow else 7):
        drawing.add(line(scale(tick), 0, scale(tick), bottom, "grid"))
        drawing.add(text(scale(tick), bottom + 16, words, cls="quiet", anchor="middle"))
    drawing.add(text((left + right) / 2, bottom + 34, "validation accuracy, %", cls="quiet", anchor="middle"))
    for number, (label, dots, edge) in enumerate(rows):
        top = height * number + 4
        base, level, told = (top + 12, top + 38, top + 26) if narrow else (top + 16, top + 12, top + 16)
        chosen = next((trial for trial, _, picked in dots if picked), "")
        note = chosen + (f" (edge: {edge})" if edge and chosen else "")
        drawing.add(text(0, base, shorten(label, width if narrow else 0.21 * width)))
        side, room = (0.0, width) if narrow else (right + 16, width - right - 16)
        drawing.add(text(side, told, shorten(note, room), cls="bad" if edge else "quiet", title=note))
        for trial, value, picked in dots:
            ring = element("circle", cx=scale(value), cy=level, r=7.5, cls="ring") if picked else ""
            dot = element("circle", cx=scale(value), cy=level, r=3.5, cls="trial")
            drawing.add(element("g", ring + dot, title=f"{label}: {trial}, {value:.2f} %"))
    return drawing


def described(settings: Mapping[str, object]) -> str:
    """Settings in a few words: the last part of each dotted key, and its value.

    Example:
        >>> described({"optimizer.rho": 0.1, "optimizer.lr": 0.4})
        'rho 0.1, lr 0.4'
    """
    return ", ".join(f"{key.rsplit('.', 1)[-1]} {value}".rstrip() for key, value in settings.items())
