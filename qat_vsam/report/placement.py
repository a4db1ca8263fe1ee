"""Direct labels that do not cover each other: beside points, and at the right ends of curves.

Everything is measured in points (1/72 inch) with the fixed font of the palette, so that the same input gives
the same places.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.transforms import Bbox, offset_copy

from qat_vsam.report.palette import MUTED

# a white ground keeps a label readable where a line passes behind it
_GROUND = {"facecolor": "white", "edgecolor": "none", "pad": 1.0, "alpha": 0.9}
_DISTANCES = (7.0, 12.0, 20.0, 30.0, 42.0)
_ANGLES = (0, 180, 30, 330, 150, 210, 60, 300, 120, 240, 90, 270)


@dataclass(frozen=True)
class Label:
    """A text in a colour for a place in data coordinates; the mark there is moved right by `shift` points."""

    text: str
    x: float
    y: float
    colour: str
    shift: float = 0.0


def label_points(axes: Axes, labels: Sequence[Label], bars: Sequence[tuple[float, float, float]] = ()) -> None:
    """Writes a label beside each point, where it covers least; far ones get a thin leader.

    Args:
        axes: with its final limits and position.
        labels: one per point.
        bars: (x, low, high) of each point's error bar in data coordinates, to keep clear of where possible.
    """
    scale = 72 / axes.figure.dpi
    places = [_in_points(axes, label.x, label.y, scale) for label in labels]
    places = [(x + label.shift, y) for (x, y), label in zip(places, labels, strict=True)]
    marks = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in places]
    thin = []
    for (x, low, high), label in zip(bars, labels, strict=False):
        left, bottom = _in_points(axes, x, low, scale)
        _, top = _in_points(axes, x, high, scale)
        thin.append(Bbox.from_extents(left + label.shift - 2, bottom, left + label.shift + 2, top))
    frame = Bbox(axes.bbox.get_points() * scale)
    written: list[Bbox] = []
    for label, (x, y) in zip(labels, places, strict=True):
        width, height = _extent(axes, label.text, scale)
        best, corner, distance = math.inf, (x, y), 0.0
        for radius in _DISTANCES:
            for turn, angle in enumerate(_ANGLES):
                left, bottom = _corner(x, y, radius, angle, width, height)
                box = Bbox.from_bounds(left, bottom, width, height)
                badness = radius + 0.6 * turn + _hidden(box, written, marks, thin, frame)
                if badness < best:
                    best, corner, distance = badness, (left, bottom), radius
        written.append(Bbox.from_bounds(*corner, width, height))
        middle = (corner[0], corner[1] + height / 2)
        axes.annotate(
            label.text,
            (label.x, label.y),
            xytext=(middle[0] - x + label.shift, middle[1] - y),
            textcoords="offset points",
            ha="left",
            va="center",
            fontsize=9,
            color=label.colour,
            fontweight="bold",
            bbox=_GROUND,
            zorder=6,
        )
        if distance > _DISTANCES[1]:
            end = (min(max(x, corner[0]), corner[0] + width), middle[1])
            transform = offset_copy(axes.transData, axes.get_figure(root=True), label.shift, 0, units="points")
            axes.annotate(
                "",
                (label.x, label.y),
                xycoords=transform,
                xytext=(end[0] - x, end[1] - y),
                textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4},
                zorder=2,
            )


def label_ends(axes: Axes, labels: Sequence[Label], gap: float = 12.0) -> None:
    """Writes labels right of the axes at the height of the curves' ends, pushed apart where they would touch.

    Args:
        axes: with its final limits and position; its figure leaves room on the right.
        labels: `y` is the end of each curve; `x` is not used.
        gap: least distance between two lines of text, in points.
    """
    if not labels:
        return
    scale = 72 / axes.figure.dpi
    low, high = axes.get_ylim()
    ends = [_in_points(axes, axes.get_xlim()[1], min(max(label.y, low), high), scale)[1] for label in labels]
    heights = spread(ends, gap, axes.bbox.y0 * scale, axes.bbox.y1 * scale)
    for label, end, height in zip(labels, ends, heights, strict=True):
        middle = (1.0, (end - axes.bbox.y0 * scale) / (axes.bbox.height * scale))
        axes.annotate(
            label.text,
            middle,
            xycoords="axes fraction",
            xytext=(14, height - end),
            textcoords="offset points",
            ha="left",
            va="center",
            fontsize=9,
            color=label.colour,
            fontweight="bold",
            arrowprops={
                "arrowstyle": "-",
                "color": label.colour,
                "linewidth": 0.7,
                "shrinkA": 1,
                "shrinkB": 2,
                "relpos": (0, 0.5),
            },
            annotation_clip=False,
        )


def widest(axes: Axes, texts: Sequence[str]) -> float:
    """The width of the longest of some labels, in points.

    Args:
        axes: of a figure with the dpi to measure at.
        texts: what will be written.
    """
    return max((_extent(axes, text, 72 / axes.figure.dpi)[0] for text in texts), default=0.0)


def spread(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Moves heights apart until neighbours are at least `gap` away, as little as needed, within [low, high].

    Example:
        >>> spread([10.0, 11.0, 30.0], gap=6.0, low=0.0, high=100.0)
        [7.5, 13.5, 30.0]
    """
    order = sorted(range(len(heights)), key=lambda i: (heights[i], i))
    # clusters of labels that touch: (members, centre); two that overlap merge around their common mean
    clusters: list[tuple[list[int], float]] = []
    for index in order:
        members, centre = [index], heights[index]
        while clusters and clusters[-1][1] + gap * (len(clusters[-1][0]) + len(members)) / 2 > centre:
            members = clusters.pop()[0] + members
            centre = sum(heights[i] for i in members) / len(members)
            half = gap * (len(members) - 1) / 2
            centre = max(low + half, min(high - half, centre))
        clusters.append((members, centre))
    moved = list(heights)
    for members, centre in clusters:
        for rank, index in enumerate(members):
            moved[index] = centre + gap * (rank - (len(members) - 1) / 2)
    return moved


def _in_points(axes: Axes, x: float, y: float, scale: float) -> tuple[float, float]:
    across, up = axes.transData.transform((x, y)) * scale
    return float(across), float(up)


def _extent(axes: Axes, text: str, scale: float) -> tuple[float, float]:
    probe = axes.text(0, 0, text, fontsize=9, fontweight="bold")
    box = probe.get_window_extent(FigureCanvasAgg(axes.get_figure(root=True)).get_renderer())
    probe.remove()
    return float(box.width) * scale + 2, float(box.height) * scale


def _corner(x: float, y: float, radius: float, angle: float, width: float, height: float) -> tuple[float, float]:
    across, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    left = x + radius * across - (0 if across > 0.1 else width if across < -0.1 else width / 2)
    return left, y + radius * up - height / 2 + height / 2 * up


def _hidden(box: Bbox, written: Sequence[Bbox], marks: Sequence[Bbox], thin: Sequence[Bbox], frame: Bbox) -> float:
    badness = sum(1000.0 for other in written if box.overlaps(other))
    badness += sum(400.0 for mark in marks if box.overlaps(mark))
    badness += sum(25.0 for bar in thin if box.overlaps(bar))
    if box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1:
        badness += 2000.0
    return badness
