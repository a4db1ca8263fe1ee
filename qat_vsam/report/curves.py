"""Curves over training: validation accuracy, gradient evaluations so far, PSF norm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from scipy import stats

from qat_vsam.report.arm import Arm
from qat_vsam.report.palette import MUTED, Palette
from qat_vsam.report.placement import Label, label_ends, widest
from qat_vsam.report.results import Results
from qat_vsam.report.statistics import CONFIDENCE

# more points than this cannot be told apart at page width, and only make the files larger
_MOST_POINTS = 150
# nor can more curves than this in one panel
MOST_CURVES = 10
_INTEREST = {"sgd": 0, "sam": 1, "split_sgd": 2, "vsam": 3}


def learning_curves(results: Results, arms: Sequence[Arm], palette: Palette) -> Figure | None:
    """One panel per precision: mean validation accuracy by epoch, with the interval of the mean."""
    known = results.epochs[results.epochs["validation_accuracy"].notna()]
    curves = {arm.name: mean_curve(known[known["arm"] == arm.name], "epoch", "validation_accuracy") for arm in arms}
    shown = [arm for arm in arms if not curves[arm.name].empty]
    shown = _readable(shown, {arm.name: float(curves[arm.name]["mean"].iloc[-1]) for arm in shown})
    if not shown:
        return None
    groups = list(dict.fromkeys(arm.group for arm in shown))
    columns = min(2, len(groups))
    rows = -(-len(groups) // columns)
    figure, panels = _panels(rows, columns, 3.7, [arm.method_label for arm in shown])
    limits = _late_limits([curves[arm.name] for arm in shown])
    for axes, group in zip(panels, groups, strict=False):
        axes.set_title(group)
        axes.set_ylim(*limits)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        labels = []
        for arm in (arm for arm in shown if arm.group == group):
            curve, colour = curves[arm.name], palette.colour(arm)
            single = "o" if len(curve) == 1 else None
            axes.plot(curve.index + 1, 100 * curve["mean"], color=colour, linewidth=1.7, marker=single)
            axes.fill_between(
                curve.index + 1,
                100 * curve["low"],
                100 * curve["high"],
                color=colour,
                alpha=0.13,
                linewidth=0,
            )
            labels.append(Label(arm.method_label, 0, 100 * float(curve["mean"].iloc[-1]), palette.text(arm)))
        axes.margins(x=0)
        label_ends(axes, labels)
    panels[0].text(0, 1.11, "validation accuracy, %", transform=panels[0].transAxes, fontsize=9, color=MUTED)
    for axes in panels[len(groups) :]:
        axes.remove()
    return figure


def spending(results: Results, arms: Sequence[Arm], palette: Palette) -> Figure | None:
    """One row per precision: gradient evaluations so far on the left, PSF norm on the right."""
    steps = results.steps
    present = set(steps["arm"])
    shown = _readable([arm for arm in arms if arm.name in present], {})
    groups = list(dict.fromkeys(arm.group for arm in shown))
    if not shown:
        return None
    figure, panels = _panels(len(groups), 2, 3.0, [arm.method_label for arm in shown])
    for row, group in enumerate(groups):
        left, right = panels[2 * row], panels[2 * row + 1]
        left.set_title(f"{group}: gradient evaluations so far")
        right.set_title(f"{group}: PSF norm")
        right.set_yscale("log")
        totals: list[Label] = []
        norms: list[Label] = []
        for arm in (arm for arm in shown if arm.group == group):
            own, colour = steps[steps["arm"] == arm.name], palette.colour(arm)
            for axes, column, labels in ((left, "gradient_evaluations", totals), (right, "psf_norm", norms)):
                values = own[own[column].notna() & np.isfinite(pd.to_numeric(own[column]))]
                if column == "psf_norm":
                    values = values[values[column] > 0]
                curve = mean_curve(values, "step", column)
                if curve.empty:
                    continue
                axes.plot(curve.index, curve["mean"], color=colour, linewidth=1.7)
                labels.append(Label(arm.method_label, 0, float(curve["mean"].iloc[-1]), palette.text(arm)))
        for axes in (left, right):
            axes.set_xlabel("step")
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            axes.margins(x=0)
        left.set_ylim(bottom=0)
        right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        right.yaxis.set_minor_locator(NullLocator())
        label_ends(left, totals)
        label_ends(right, norms)
        if not norms:
            right.text(
                0.5,
                0.5,
                "no method with a second gradient",
                transform=right.transAxes,
                ha="center",
                color=MUTED,
            )
            right.set_yticks([])
    return figure


def crowded(arms: Sequence[Arm]) -> bool:
    """Whether some precision has more trained arms than a panel can show curves."""
    groups = [arm.group for arm in arms if arm.gradients is not None]
    return any(groups.count(group) > MOST_CURVES for group in groups)


def _readable(arms: Sequence[Arm], score: Mapping[str, float]) -> list[Arm]:
    """At most MOST_CURVES arms of each group: the references and vSAMs first, then those of the highest score."""
    kept: set[str] = set()
    for group in dict.fromkeys(arm.group for arm in arms):
        members = [arm for arm in arms if arm.group == group]
        ranked = sorted(members, key=lambda arm: (_INTEREST.get(arm.role, 4), -score.get(arm.name, 0.0)))
        kept |= {arm.name for arm in ranked[:MOST_CURVES]}
    return [arm for arm in arms if arm.name in kept]


def mean_curve(rows: pd.DataFrame, x: str, y: str) -> pd.DataFrame:
    """The mean over seeds at each x, with the Student interval of the mean.

    Args:
        rows: one row per seed and x.
        x, y: names of the columns.

    Returns:
        A frame indexed by x (thinned to what a figure can show, the last x kept) with the columns mean, low
        and high; low and high are NaN where one seed is all there is.
    """
    if rows.empty:
        return pd.DataFrame(columns=["mean", "low", "high"], dtype=float)
    values = rows.assign(**{y: pd.to_numeric(rows[y])}).groupby(x)[y].agg(["mean", "std", "count"])
    keep = np.unique(np.linspace(0, len(values) - 1, _MOST_POINTS).round().astype(int))
    values = values.iloc[keep]
    count = values["count"].to_numpy(dtype=float)
    freedom = np.where(count > 1, count - 1, np.nan)
    reach = stats.t.ppf(0.5 + CONFIDENCE / 2, freedom) * values["std"].to_numpy() / np.sqrt(count)
    return pd.DataFrame(
        {"mean": values["mean"], "low": values["mean"] - reach, "high": values["mean"] + reach},
        index=values.index,
    )


def _late_limits(curves: Sequence[pd.DataFrame]) -> tuple[float, float]:
    """Limits of the accuracy axis in which the differences at the end take up a good part of the height."""
    ends = [curve[["mean", "low", "high"]].iloc[-1] for curve in curves]
    last = 100 * min(float(end.min()) for end in ends)
    high = 100 * max(float(curve[["mean", "high"]].max().max()) for curve in curves)
    lowest = 100 * min(float(curve["mean"].min()) for curve in curves)
    low = max(lowest, last - 3 * max(high - last, 1.0))
    margin = max(0.06 * (high - low), 0.2)
    return low - margin, min(high + margin, 100.4)


def _panels(rows: int, columns: int, height: float, labels: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """Axes on a fixed grid in a figure as wide as the page, with room for the widest label beside each."""
    width, left, top, bottom = 9.2, 44.0, 40.0, 36.0
    figure = Figure(figsize=(width, rows * height))
    FigureCanvasAgg(figure)
    probe = figure.add_axes((0, 0, 1, 1))
    right = widest(probe, labels) + 20
    probe.remove()
    # a very long label makes the figure wider rather than squeeze the panel to nothing
    cell, tall = max(width * 72 / columns, right / 0.45), height * 72
    width = cell * columns / 72
    figure.set_size_inches(width, rows * height)
    panels = []
    for row in range(rows):
        for column in range(columns):
            box = (
                column * cell + left,
                (rows - 1 - row) * tall + bottom,
                cell - left - right,
                tall - top - bottom,
            )
            panels.append(
                figure.add_axes(
                    (
                        box[0] / (width * 72),
                        box[1] / (rows * tall),
                        box[2] / (width * 72),
                        box[3] / (rows * tall),
                    )
                )
            )
    return figure, panels
