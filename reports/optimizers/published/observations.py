"""What |h| and the rate of payments do over the training: python observations.py RUNS, the folder of the comparison.

RUNS is what `qat-vsam compare optimizers/published --out RUNS` leaves. One line an arm: in each quarter of the run the
mean of |h|, its standard deviation over its mean, and the rate of payments at the end; all means over seeds.
"""

import json
import sys
from pathlib import Path

import pandas as pd

QUARTERS = 4


def steps_of(arm: Path) -> pd.DataFrame:
    """The logged steps of all seeds of an arm, with the quarter of the run that each lies in."""
    frames = []
    for file in sorted(arm.glob("seed-*/metrics.jsonl")):
        lines = (json.loads(line) for line in file.read_text().splitlines())
        frame = pd.DataFrame([line for line in lines if line["kind"] == "step"])
        frame["quarter"] = (frame["step"] - 1) * QUARTERS // frame["step"].max()
        frames.append(frame.assign(seed=file.parent.name))
    return pd.concat(frames)


def row(arm: Path) -> dict[str, str]:
    steps = steps_of(arm)
    seeds = steps.groupby(["seed", "quarter"])
    norms = seeds["psf_norm"].agg(["mean", "std"]).assign(spread=lambda norm: norm["std"] / norm["mean"])
    by_quarter = norms.groupby("quarter").mean()
    rates = seeds["rate"].last().groupby("quarter").mean() if "rate" in steps else None
    return {
        "arm": arm.name,
        "mean of the norm of h": ", ".join(f"{value:.3f}" for value in by_quarter["mean"]),
        "its deviation over its mean": ", ".join(f"{value:.2f}" for value in by_quarter["spread"]),
        "rate at the end": "-" if rates is None else ", ".join(f"{value:.2f}" for value in rates),
    }


arms = [path for path in sorted(Path(sys.argv[1]).iterdir()) if any(path.glob("seed-*")) and path.name != "sgd"]
sys.stdout.write(pd.DataFrame([row(arm) for arm in arms]).to_string(index=False) + "\n")
