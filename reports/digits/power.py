"""How often the tour's ten seeds decide: 200 samples of the committed study's 30 seeds, judged as its page is.

python reports/digits/power.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from qat_vsam.report import Scores, assign_roles, judge, read_records

SAMPLES, SEEDS = 200, 10

runs = [record for record in read_records(Path(__file__).parent) if record.trial is None]
trained = [record.result for record in runs if record.result["kind"] == "trained"]
arms = {run["arm"]: (run["arm"], run["precision"], run["precision"], run["optimizer"]) for run in trained}
roles = dict(zip(arms, assign_roles(list(arms.values()), {}), strict=True))
accuracy = {(run["arm"], run["seed"]): 100 * run["accuracy"]["test"] for run in trained}
seeds = sorted({seed for _, seed in accuracy})

generator = np.random.default_rng(0)
words: dict[str, dict[str, int]] = {}
gains = 0
for _ in range(SAMPLES):
    drawn = generator.choice(seeds, SEEDS, replace=False)
    scores = [
        Scores(arm, precision, roles[arm], {int(seed): accuracy[arm, int(seed)] for seed in drawn})
        for arm, (_, _, precision, _) in arms.items()
    ]
    judged = judge(scores)
    gains += "w4a4" in judged.gains
    for arm, verdict in judged.verdicts.items():
        counts = words.setdefault(arm, {})
        counts[verdict.word] = counts.get(verdict.word, 0) + 1
lines = [f"SAM's gain at W4A4 is established in {gains} of {SAMPLES} samples of {SEEDS} of {len(seeds)} seeds"]
for arm, counts in words.items():
    lines.append(f"{arm:<24}" + ", ".join(f"{word} {count}" for word, count in sorted(counts.items())))
sys.stdout.write("\n".join(lines) + "\n")
