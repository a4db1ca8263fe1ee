"""What an arm cost to train, in one unit for all arms of a study: a run of SGD in float32, and its step.

Gradients are counted. Times come from a bench that timed all arms in turn, or are not shown: the clocks of the runs
themselves hold what else the machine was doing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from qat_vsam.report.arm import Reach
from qat_vsam.report.exports import known_mean
from qat_vsam.report.names import FLOAT
from qat_vsam.report.schema import BenchRecord
from qat_vsam.report.statistics import Estimate

# a learning curve of fewer points does not tell when an accuracy was reached
FEWEST_POINTS = 3


@dataclass(frozen=True)
class Unit:
    """A run of SGD in float32: `steps` steps of one gradient each.

    Attributes:
        steps: of one run.
        note: where no arm is SGD in float32, what stands in its place; a caveat.
    """

    steps: float
    note: str = ""


@dataclass(frozen=True)
class Cost:
    """The price of a trained arm; None where it is not known.

    Attributes:
        gradients: gradient evaluations a step.
        run_gradients: of a run, in those of a float32 SGD run.
        step_time: of a step, in float32 SGD steps, with the interval of the median over rounds of the bench.
        run_time: of a run, in float32 SGD runs.
    """

    gradients: float | None = None
    run_gradients: float | None = None
    step_time: Estimate | None = None
    run_time: Estimate | None = None


def unit_of(runs: pd.DataFrame) -> Unit | None:
    """The unit of a study, or None where no SGD tells how long one is.

    Args:
        runs: with the column `role`.
    """
    sgd = runs[(runs["role"] == "sgd") & runs["steps"].notna()]
    own = sgd[sgd["precision"] == FLOAT]
    for rows in (own, sgd):
        if rows.empty:
            continue
        name = str(rows["arm"].iloc[0])
        steps = known_mean(rows[rows["arm"] == name]["steps"])
        if steps:
            note = (
                ""
                if rows is own
                else f"No arm is SGD in float32: the unit of gradients is the steps of {name}, one gradient each."
            )
            return Unit(steps, note)
    return None


def cost_of(rows: pd.DataFrame, unit: Unit | None, bench: BenchRecord | None) -> Cost:
    """The cost of one arm.

    Args:
        rows: its runs.
        unit: see `unit_of`.
        bench: interleaved step times, or None.
    """
    steps, total = known_mean(rows["steps"]), known_mean(rows["gradient_evaluations"])
    measured = known_mean(rows["gradient_evaluations_per_step"])
    gradients = total / steps if measured is None and total is not None and steps else measured
    step_time = _step_time(str(rows["arm"].iloc[0]), bench)
    run_time = None
    if step_time is not None and unit is not None and steps:
        run_time = _scaled(step_time, steps / unit.steps)
    return Cost(gradients, total / unit.steps if total is not None and unit is not None else None, step_time, run_time)


def reach_of(epochs: pd.DataFrame, target: float | None, unit: Unit | None, step_time: Estimate | None) -> Reach:
    """When the mean curve of an arm first reached an accuracy, linear between the epochs that were validated.

    Args:
        epochs: the arm's rows of `Results.epochs`.
        target: SAM's mean validation accuracy in its last epoch; None where its runs have no curve.
        unit: see `unit_of`.
        step_time: see `Cost`.
    """
    curve = mean_curve(epochs)
    if target is None or unit is None or len(curve) < FEWEST_POINTS:
        return Reach(None, None, "no curve")
    place = _first_at(curve["validation_accuracy"].to_numpy(dtype=float), target)
    if place is None:
        return Reach(None, None, "not reached")
    index = np.arange(len(curve))
    gradients = float(np.interp(place, index, curve["gradient_evaluations"]))
    steps = float(np.interp(place, index, curve["step"]))
    pace = None if step_time is None else step_time.value
    time = None if pace is None or not np.isfinite(steps) else pace * steps / unit.steps
    return Reach(gradients / unit.steps if np.isfinite(gradients) else None, time)


def mean_curve(epochs: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds at every epoch that all of them validated, in order."""
    known = epochs[epochs["validation_accuracy"].notna()]
    columns = ["validation_accuracy", "gradient_evaluations", "step"]
    numbers = known[["epoch", *columns]].apply(pd.to_numeric)
    grouped = numbers.groupby("epoch", sort=True)
    means: pd.DataFrame = grouped[columns].mean()
    complete = [epoch for epoch, count in grouped.size().items() if count == known["seed"].nunique()]
    return means.loc[complete]


def final_accuracy(epochs: pd.DataFrame) -> float | None:
    """The last point of the mean curve; None where it has too few points to be one."""
    curve = mean_curve(epochs)
    return None if len(curve) < FEWEST_POINTS else float(curve["validation_accuracy"].iloc[-1])


def _step_time(arm: str, bench: BenchRecord | None) -> Estimate | None:
    rows = bench.rows if bench else ()
    row = next((row for row in rows if row.arm == arm), None)
    return None if row is None else Estimate(row.ratio, row.ratio_low, row.ratio_high, n=row.n or 0)


def _scaled(estimate: Estimate, factor: float) -> Estimate:
    def scale(value: float | None) -> float | None:
        return None if value is None else value * factor

    return Estimate(scale(estimate.value), scale(estimate.low), scale(estimate.high), n=estimate.n)


def _first_at(values: np.ndarray, target: float) -> float | None:
    """The place, between whole ones if need be, where the values first are at the target or above it."""
    above = np.flatnonzero(values >= target)
    if not above.size:
        return None
    place = int(above[0])
    if place == 0:
        return 0.0
    before, after = values[place - 1], values[place]
    return float(place - 1 + (target - before) / (after - before))
