"""The figures of a report, drawn without pyplot, as PNG and SVG files that repeat byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from qat_vsam.report.arm import Arm
from qat_vsam.report.curves import MOST_CURVES, crowded, learning_curves, spending
from qat_vsam.report.palette import RC, Palette
from qat_vsam.report.results import Results
from qat_vsam.report.trade_off import trade_off, trade_off_caption


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
        "cost": [(arm, arm.run_gradients) for arm in arms if arm.run_gradients is not None],
        "time": [(arm, time) for arm in arms if arm.run_time is not None and (time := arm.run_time.value) is not None],
    }
    clock = "step times measured interleaved in one process"
    few = "" if not crowded(arms) else f" Of each precision {MOST_CURVES} arms at most: the references and the vSAMs, "
    return [
        (
            "accuracy_vs_evaluations",
            "Accuracy against training cost",
            "Cost counts the gradient evaluations of a run, each weighted by its share of the batch, in runs of SGD of "
            "the same precision. " + trade_off_caption(arms, points["cost"]),
            lambda: trade_off(arms, points["cost"], palette, "gradient evaluations of a run, in SGD runs"),
        ),
        (
            "accuracy_vs_time",
            "Accuracy against training time",
            f"Time of a run in units of an SGD run of the same precision: {clock}. "
            + trade_off_caption(arms, points["time"]),
            lambda: trade_off(arms, points["time"], palette, "time of a run, in SGD runs of the same bits"),
        ),
        (
            "learning_curves",
            "Learning curves",
            "Validation accuracy, mean over seeds with its 95 % interval. The steep beginning may leave the "
            "frame, so that the differences at the end can be seen."
            + (few and few + "then the most accurate at the end."),
            lambda: learning_curves(results, arms, palette),
        ),
        (
            "cost_and_psf",
            "Where the gradients were spent",
            "Left: gradient evaluations so far. Right: norm of the stored PSF, the gradient at the perturbed "
            "weights minus the gradient at the weights, for the methods that have one. Means over seeds."
            + (few and few + "then in the order of the tables."),
            lambda: spending(results, arms, palette),
        ),
    ]
