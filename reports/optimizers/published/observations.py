"""What |h| and the rate of payments do over the training: python observations.py RUNS, the folder of the comparison.

RUNS is what `qat-vsam compare optimizers/published --out RUNS` leaves. One line an arm: in each quarter of the run the
mean of |h|, its standard deviation over its mean, and the rate of payments at the end; all means over seeds.
"""

import sys
from pathlib import Path

import pandas as pd

from qat_vsam.report import load_results

QUARTERS = 4


def row(arm: str, steps: pd.DataFrame) -> dict[str, str]:
    steps = steps.assign(quarter=(steps["step"] - 1) * QUARTERS // steps["step"].max())
    seeds = steps.groupby(["seed", "quarter"])
    norms = seeds["psf_norm"].agg(["mean", "std"]).assign(spread=lambda norm: norm["std"] / norm["mean"])
    by_quarter = norms.groupby("quarter").mean()
    rates = seeds["rate"].last().groupby("quarter").mean()
    return {
        "arm": arm,
        "mean of the norm of h": ", ".join(f"{value:.3f}" for value in by_quarter["mean"]),
        "its deviation over its mean": ", ".join(f"{value:.2f}" for value in by_quarter["spread"]),
        "rate at the end": ", ".join(f"{value:.2f}" for value in rates),
    }


arms = load_results(Path(sys.argv[1])).steps.query("arm != 'sgd'").groupby("arm")
sys.stdout.write(pd.DataFrame([row(arm, steps) for arm, steps in arms]).to_string(index=False) + "\n")
