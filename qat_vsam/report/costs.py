"""What an arm cost to train: by step and by run, in gradient evaluations and in time, next to SGD of the same bits."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from qat_vsam.report.exports import known_mean
from qat_vsam.report.schema import BenchRecord


@dataclass(frozen=True)
class Cost:
    """The price of a trained arm; None where it is not known.

    Attributes:
        step: gradient evaluations a step.
        run: gradient evaluations of the run in runs of SGD, which tells arms of more or fewer steps apart. Without an
            SGD, a run of as many steps at one evaluation each is the unit.
        step_time, run_time: time of a step and of the run, in those of SGD.
        source: "bench" (interleaved) or "training" (from the runs' own clocks).
        seconds: of a run's training.
    """

    step: float | None = None
    run: float | None = None
    step_time: float | None = None
    run_time: float | None = None
    source: str | None = None
    seconds: float | None = None


def cost_of(rows: pd.DataFrame, sgd: pd.DataFrame | None, bench: BenchRecord | None) -> Cost:
    """The cost of one arm.

    Args:
        rows: its runs.
        sgd: the runs of SGD of the same group, or None.
        bench: interleaved step times, or None.
    """
    step = _per_step(rows)
    longer = _ratio(known_mean(rows["steps"]), None if sgd is None else known_mean(sgd["steps"]))
    run = step if sgd is None else _ratio(_total(rows), _total(sgd))
    time, source = _step_time(rows, sgd, bench)
    run_time = time if time is None or longer is None else time * longer
    return Cost(step, run, time, run_time, source, known_mean(rows["train_seconds"]))


def _per_step(rows: pd.DataFrame) -> float | None:
    measured = known_mean(rows["gradient_evaluations_per_step"])
    return _ratio(_total(rows), known_mean(rows["steps"])) if measured is None else measured


def _total(rows: pd.DataFrame) -> float | None:
    return known_mean(rows["gradient_evaluations"])


def _step_time(
    rows: pd.DataFrame, sgd: pd.DataFrame | None, bench: BenchRecord | None
) -> tuple[float | None, str | None]:
    name = rows["arm"].iloc[0]
    for row in bench.rows if bench else ():
        if row.arm == name and row.ratio_to_sgd is not None:
            return row.ratio_to_sgd, "bench"
    ratio = None if sgd is None else _median_ratio(_step_seconds(rows), _step_seconds(sgd))
    return ratio, None if ratio is None else "training"


def _median_ratio(own: pd.Series, reference: pd.Series) -> float | None:
    # within a seed, since runs of one seed follow each other and so meet the machine's load most alike
    paired = (own / reference).dropna()
    if not paired.empty:
        return float(paired.median())
    return None if own.empty or reference.empty else float(own.median() / reference.median())


def _step_seconds(rows: pd.DataFrame) -> pd.Series:
    """By seed, where they are known."""
    steps = pd.to_numeric(rows["steps"]).where(lambda steps: steps > 0)
    return (pd.to_numeric(rows["train_seconds"]) / steps).groupby(rows["seed"]).median().dropna()


def _ratio(own: float | None, reference: float | None) -> float | None:
    return own / reference if own is not None and reference else None
