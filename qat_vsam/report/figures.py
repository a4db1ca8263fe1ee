"""The figures of a report, drawn without pyplot, as PNG and SVG files that repeat byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Transform, offset_copy

from qat_vsam.report.arm import Arm
from qat_vsam.report.curves import learning_curves, spending
from qat_vsam.report.palette import INK, MUTED, RC, Palette
from qat_vsam.report.placement import Label, label_points
from qat_vsam.report.results import Results
from qat_vsam.report.statistics import pareto_front


@dataclass(frozen=True)
class Drawing:
    """A figure on disk: NAME.png and NAME.svg, with its title and caption."""

    name: str
    title: str
    caption: str
    png: Path
    svg: Path


def draw_figures(results: Results, arms: Sequence[Arm], folder: Path) -> list[Drawing]:
    """Draws what the data allows, in reading order; a figure without data is left out.

    Args:
        results: for the curves.
        arms: the rows of the table.
        folder: where NAME.png and NAME.svg go; created if missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    palette = Palette.of(arms)
    drawings = []
    with matplotlib.rc_context():
        # a reader's own matplotlibrc must not change a report
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(RC)
        for name, title, caption, draw in _plan(results, arms, palette):
            figure = draw()
            if figure is None:
                continue
            png, svg = folder / f"{name}.png", folder / f"{name}.svg"
            figure.savefig(png, dpi=160, metadata={"Software": None})
            figure.savefig(svg, metadata={"Date": None, "Creator": None})
            drawings.append(Drawing(name, title, caption, png, svg))
    return drawings


def _plan(
    results: Results, arms: Sequence[Arm], palette: Palette
) -> list[tuple[str, str, str, Callable[[], Figure | None]]]:
    points = {
        "cost": [(arm, arm.cost) for arm in arms if arm.cost is not None],
        "time": [(arm, arm.time_ratio) for arm in arms if arm.time_ratio is not None],
    }
    bench_only = all(arm.time_source == "bench" for arm, _ in points["time"])
    clock = (
        "step times measured interleaved in one process"
        if bench_only
        else "training seconds of the runs themselves where no interleaved measurement was at hand"
    )
    front = "Filled marks lie on the Pareto front of their precision, drawn as steps."
    if any(arm.accuracy.low is not None for arm in arms):
        front += (
            " Bars: 95 % intervals over seeds; they hold the spread between seeds, which the paired "
            "differences of the table do not."
        )
    return [
        (
            "accuracy_vs_evaluations",
            "Accuracy against training cost",
            "Cost counts gradient evaluations a step, each weighted by its share of the batch. "
            + front
            + _outside(arms, points["cost"]),
            lambda: _trade_off(arms, points["cost"], palette, "gradient evaluations a step"),
        ),
        (
            "accuracy_vs_time",
            "Accuracy against training time",
            f"Time of a step in units of an SGD step of the same precision: {clock}. "
            + front
            + _outside(arms, points["time"]),
            lambda: _trade_off(arms, points["time"], palette, "time of a step, in SGD steps of the same bits"),
        ),
        (
            "learning_curves",
            "Learning curves",
            "Validation accuracy, mean over seeds with its 95 % interval. The steep beginning may leave the "
            "frame, so that the differences at the end can be seen.",
            lambda: learning_curves(results, arms, palette),
        ),
        (
            "cost_and_psf",
            "Where the gradients were spent",
            "Left: gradient evaluations so far. Right: norm of the stored PSF, the gradient at the perturbed "
            "weights minus the gradient at the weights, for the methods that have one. Means over seeds.",
            lambda: spending(results, arms, palette),
        ),
    ]


def _trade_off(
    arms: Sequence[Arm], points: Sequence[tuple[Arm, float]], palette: Palette, quantity: str
) -> Figure | None:
    if len(points) < 2:
        return None
    figure = Figure(figsize=(9.2, 4.9))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.075, 0.12, 0.905, 0.80))
    axes.set_xlabel(quantity)
    axes.set_title("test accuracy, %", fontweight="normal", fontsize=10, color=MUTED)
    costs = [cost for _, cost in points]
    reach = max(max(costs) - min(costs), 0.2)
    axes.set_xlim(min(costs) - 0.2 * reach, max(costs) + 0.2 * reach)
    axes.set_ylim(*_accuracy_limits(points))
    _draw_untrained(axes, arms, points, palette)
    groups = list(dict.fromkeys(arm.group for arm, _ in points))
    labels, bars = [], []
    for rank, group in enumerate(groups):
        members = [(arm, cost) for arm, cost in points if arm.group == group]
        # precisions of the same cost stand side by side, not on top of each other
        shift = 7.0 * (rank - (len(groups) - 1) / 2)
        transform = offset_copy(axes.transData, figure, shift, 0, units="points")
        on_front = _draw_front(axes, members, palette, transform)
        for index, (arm, cost) in enumerate(members):
            colour, value = palette.colour(arm), float(arm.accuracy.value or 0.0)
            ends = (arm.accuracy.low or value, arm.accuracy.high or value)
            axes.plot([cost, cost], ends, color=colour, linewidth=1.4, alpha=0.55, transform=transform, zorder=3)
            axes.plot(
                [cost],
                [value],
                palette.marker(arm),
                markersize=8.5,
                color=colour,
                markerfacecolor=colour if index in on_front else "white",
                markeredgewidth=1.8,
                transform=transform,
                zorder=4,
            )
            labels.append(Label(arm.label, cost, value, palette.text(arm), shift))
            bars.append((cost, *ends))
    if len(groups) > 1:
        _legend(axes, groups, palette)
    label_points(axes, labels, bars)
    return figure


def _accuracy_limits(points: Sequence[tuple[Arm, float]]) -> tuple[float, float]:
    estimates = [arm.accuracy for arm, _ in points]
    ends = [end for e in estimates for end in (e.value, e.low, e.high) if end is not None]
    margin = max(0.12 * (max(ends) - min(ends)), 0.1)
    return min(ends) - margin, max(ends) + margin


def _untrained(arms: Sequence[Arm], points: Sequence[tuple[Arm, float]], inside: bool) -> list[tuple[Arm, float]]:
    """Arms that cost no training, with their accuracy, inside or outside the frame of the trained ones."""
    low, high = _accuracy_limits(points)
    known = [(arm, arm.accuracy.value) for arm in arms if arm.role in ("float_reference", "post_training")]
    return [(arm, v) for arm, v in known if v is not None and (low < v < high) == inside]


def _outside(arms: Sequence[Arm], points: Sequence[tuple[Arm, float]]) -> str:
    missing = _untrained(arms, points, inside=False) if points else []
    if not missing:
        return ""
    return " Outside the frame: " + ", ".join(f"{arm.label} at {value:.2f} %" for arm, value in missing) + "."


def _draw_untrained(axes: Axes, arms: Sequence[Arm], points: Sequence[tuple[Arm, float]], palette: Palette) -> None:
    for arm, value in _untrained(arms, points, inside=True):
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


def _draw_front(axes: Axes, members: Sequence[tuple[Arm, float]], palette: Palette, transform: Transform) -> list[int]:
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
