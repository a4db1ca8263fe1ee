"""Accuracy against cost: a scatter with the Pareto front of each precision and a label at every point.

Few points share one frame, so that precisions can be compared; many have a frame for each precision.
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Transform, offset_copy

from qat_vsam.report.arm import Arm
from qat_vsam.report.palette import INK, MUTED, Palette
from qat_vsam.report.placement import Label, label_points
from qat_vsam.report.statistics import pareto_front

# beyond so many points in one frame their labels and error bars hide each other
_CROWD = 14
_WIDTH, _HEIGHT = 9.2, 4.9

Points = Sequence[tuple[Arm, float]]


def trade_off(arms: Sequence[Arm], points: Points, palette: Palette, quantity: str) -> Figure | None:
    """The scatter, or None where fewer than two points make no trade-off.

    Args:
        arms: all rows of the table; what was not trained is drawn as a line.
        points: arms with their cost.
        palette: colours by method, marks by precision.
        quantity: what the cost is, for the axis.
    """
    if len(points) < 2:
        return None
    frames = _frames(arms, points)
    figure = Figure(figsize=(_WIDTH, _HEIGHT * len(frames)))
    FigureCanvasAgg(figure)
    for row, (rows, inside) in enumerate(frames):
        bottom = (len(frames) - 1 - row + 0.12) / len(frames)
        axes = figure.add_axes((0.075, bottom, 0.905, 0.80 / len(frames)))
        axes.set_xlabel(quantity)
        title = "test accuracy, %" + (f", {inside[0][0].group}" if len(frames) > 1 else "")
        axes.set_title(title, fontweight="normal", fontsize=10, color=MUTED)
        _draw_frame(axes, rows, inside, palette)
    return figure


def trade_off_caption(arms: Sequence[Arm], points: Points) -> str:
    """What the marks and bars of the scatter mean, and what lies outside of it."""
    frames = _frames(arms, points)
    text = "Filled marks lie on the Pareto front of their precision, drawn as steps."
    if any(_is_crowded(inside) for _, inside in frames):
        text += " The intervals stand in the table."
    elif any(arm.accuracy.low is not None for arm in arms):
        text += (
            " Bars: 95 % intervals over seeds; they hold the spread between seeds, which the paired "
            "differences of the table do not."
        )
    missing = [pair for rows, inside in frames for pair in _untrained(rows, inside, within=False)]
    if missing:
        text += " Outside the frame: " + ", ".join(f"{arm.label} at {value:.2f} %" for arm, value in missing) + "."
    return text


def _frames(arms: Sequence[Arm], points: Points) -> list[tuple[Sequence[Arm], Points]]:
    """The rows of the table and the points of each frame: one for all, or one for each precision."""
    if not _is_crowded(points):
        return [(arms, points)] if points else []
    groups = dict.fromkeys(arm.group for arm, _ in points)
    return [
        ([arm for arm in arms if arm.group == group], [pair for pair in points if pair[0].group == group])
        for group in groups
    ]


def _is_crowded(points: Points) -> bool:
    return len(points) > _CROWD


def _draw_frame(axes: Axes, arms: Sequence[Arm], points: Points, palette: Palette) -> None:
    costs = [cost for _, cost in points]
    reach = max(max(costs) - min(costs), 0.2)
    axes.set_xlim(min(costs) - 0.2 * reach, max(costs) + 0.2 * reach)
    axes.set_ylim(*_accuracy_limits(points))
    _draw_untrained(axes, arms, points, palette)
    groups = list(dict.fromkeys(arm.group for arm, _ in points))
    crowded = _is_crowded(points)
    labels, bars = [], []
    for rank, group in enumerate(groups):
        members = [(arm, cost) for arm, cost in points if arm.group == group]
        # precisions of the same cost stand side by side, not on top of each other
        shift = 7.0 * (rank - (len(groups) - 1) / 2)
        transform = offset_copy(axes.transData, axes.get_figure(root=True), shift, 0, units="points")
        on_front = _draw_front(axes, members, palette, transform)
        for index, (arm, cost) in enumerate(members):
            value = float(arm.accuracy.value or 0.0)
            ends = (value, value) if crowded else (arm.accuracy.low or value, arm.accuracy.high or value)
            _draw_point(axes, palette, arm, cost, ends, index in on_front, transform)
            text = arm.method_label if crowded else arm.label
            labels.append(Label(text, cost, value, palette.text(arm), shift))
            bars.append((cost, *ends))
    if len(groups) > 1:
        _legend(axes, groups, palette)
    label_points(axes, labels, bars)


def _draw_point(
    axes: Axes,
    palette: Palette,
    arm: Arm,
    cost: float,
    ends: tuple[float, float],
    on_front: bool,
    transform: Transform,
) -> None:
    colour = palette.colour(arm)
    axes.plot([cost, cost], ends, color=colour, linewidth=1.4, alpha=0.55, transform=transform, zorder=3)
    axes.plot(
        [cost],
        [float(arm.accuracy.value or 0.0)],
        palette.marker(arm),
        markersize=8.5,
        color=colour,
        markerfacecolor=colour if on_front else "white",
        markeredgewidth=1.8,
        transform=transform,
        zorder=4,
    )


def _accuracy_limits(points: Points) -> tuple[float, float]:
    estimates = [arm.accuracy for arm, _ in points]
    shown = ([e.value] if _is_crowded(points) else [e.value, e.low, e.high] for e in estimates)
    ends = [end for ends in shown for end in ends if end is not None]
    margin = max(0.12 * (max(ends) - min(ends)), 0.1)
    return min(ends) - margin, max(ends) + margin


def _untrained(arms: Sequence[Arm], points: Points, within: bool) -> list[tuple[Arm, float]]:
    """Arms that cost no training, with their accuracy, inside or outside the frame of the trained ones."""
    low, high = _accuracy_limits(points)
    known = [(arm, arm.accuracy.value) for arm in arms if arm.role in ("float_reference", "post_training")]
    return [(arm, v) for arm, v in known if v is not None and (low < v < high) == within]


def _draw_untrained(axes: Axes, arms: Sequence[Arm], points: Points, palette: Palette) -> None:
    for arm, value in _untrained(arms, points, within=True):
        axes.axhline(value, color=palette.colour(arm), linewidth=1, linestyle=(0, (1, 2)), zorder=1)
        axes.annotate(
            arm.label,
            (1, value),
            xycoords=("axes fraction", "data"),
            xytext=(-2, 3),
            textcoords="offset points",
            ha="right",
            fontsize=8.5,
            color=palette.text(arm),
        )


def _draw_front(axes: Axes, members: Points, palette: Palette, transform: Transform) -> list[int]:
    pairs = [(cost, float(arm.accuracy.value or 0.0)) for arm, cost in members]
    front = pareto_front(pairs)
    xs, ys = [pairs[i][0] for i in front], [pairs[i][1] for i in front]
    # on to the right edge, and past it by more than any shift
    left, right = axes.get_xlim()
    xs, ys = [*xs, 2 * right - left], [*ys, ys[-1]]
    line = palette.lines[members[0][0].group]
    axes.plot(
        xs,
        ys,
        drawstyle="steps-post",
        color="#b8c1c9",
        linewidth=1.3,
        linestyle=line,
        transform=transform,
        zorder=1,
    )
    return front


def _legend(axes: Axes, groups: Sequence[str], palette: Palette) -> None:
    handles = [
        Line2D([], [], color=INK, marker=palette.markers[g], linestyle=palette.lines[g], linewidth=1, label=g)
        for g in groups
    ]
    axes.legend(handles=handles, loc="lower right", handlelength=3.2)
