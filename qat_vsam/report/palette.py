"""One look for every figure: a colour per method, a marker and a line style per precision.

The colours are those of Okabe and Ito, which stay apart for colour-blind readers; the pale yellow of that set
is left out, for it vanishes on white.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from qat_vsam.report.arm import Arm

INK = "#1f2933"
MUTED = "#5b6770"
GRID = "#e3e7eb"

_COLOURS = {
    "sgd": "#5b6770",
    "split-sgd": "#56b4e9",
    "split": "#56b4e9",
    "sam": "#d55e00",
    "vsam": "#0072b2",
    "vsam-variance": "#cc79a7",
    "post-training": "#009e73",
    "float-before": "#1f2933",
}
_SPARE = (
    *("#e69f00", "#009e73", "#8b5e3c", "#6f4fa3", "#b03060", "#3f7f3f", "#1f2933"),
    *("#d98880", "#117a8b", "#a3a847", "#7d3c98", "#5d8aa8", "#c2571a", "#4b5320"),
)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
_LINES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)))

RC: Any = {  # matplotlib types every key apart
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#9aa5ae",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    # the identifiers in an SVG come from this salt: without it two drawings of the same data differ
    "svg.hashsalt": "qat-vsam",
    "svg.fonttype": "path",
}


@dataclass(frozen=True)
class Palette:
    """What every arm looks like: `colours` by method, `markers` and `lines` by group."""

    colours: dict[str, str]
    markers: dict[str, str]
    lines: dict[str, Any]

    def colour(self, arm: Arm) -> str:
        """The colour of an arm's method."""
        return self.colours[arm.method]

    def text(self, arm: Arm) -> str:
        """The method's colour, darkened so far that small letters read well on white."""
        red, green, blue = (int(self.colours[arm.method][i : i + 2], 16) for i in (1, 3, 5))
        return f"#{round(0.72 * red):02x}{round(0.72 * green):02x}{round(0.72 * blue):02x}"

    def marker(self, arm: Arm) -> str:
        """The marker of an arm's precision."""
        return self.markers[arm.group]

    @classmethod
    def of(cls, arms: Iterable[Arm]) -> Palette:
        """Known methods keep their colour in every report; others take spare ones in table order."""
        arms = list(arms)
        methods = list(dict.fromkeys(arm.method for arm in arms))
        taken = {_COLOURS[method] for method in methods if method in _COLOURS}
        spare = [colour for colour in _SPARE if colour not in taken]
        colours = {method: _COLOURS[method] for method in methods if method in _COLOURS}
        for index, method in enumerate(method for method in methods if method not in _COLOURS):
            colours[method] = spare[index % len(spare)]
        groups = list(dict.fromkeys(arm.group for arm in arms))
        return cls(
            colours=colours,
            markers={group: _MARKERS[i % len(_MARKERS)] for i, group in enumerate(groups)},
            lines={group: _LINES[i % len(_LINES)] for i, group in enumerate(groups)},
        )
