"""The frames behind the CSVs: everything that the tables show, and what they leave out, a row per run and per arm."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from qat_vsam.report.arm import Arm
from qat_vsam.report.results import Results
from qat_vsam.report.statistics import Estimate


def runs_frame(results: Results) -> pd.DataFrame:
    """One row per run, with its exports in columns of their own."""
    frame = results.runs
    for name, exports in results.exports.groupby("format", sort=True):
        columns = [column for column in exports.columns if column not in ("arm", "seed", "format", "trained_accuracy")]
        renamed = exports[["arm", "seed", *columns]].rename(columns={c: f"export_{name}_{c}" for c in columns})
        frame = frame.merge(renamed, on=["arm", "seed"], how="left")
    return frame


def arms_frame(arms: Sequence[Arm]) -> pd.DataFrame:
    """One row per arm, intervals in columns of their own; costs are in those of float32 SGD."""
    return pd.DataFrame([_arm_row(arm) for arm in arms])


def _arm_row(arm: Arm) -> dict[str, object]:
    row: dict[str, object] = {
        "arm": arm.name,
        "label": arm.label,
        "group": arm.group,
        "precision": arm.precision,
        "role": arm.role,
        "seeds": len(arm.seeds),
        "draws": arm.draws,
        "best_of_group": arm.best,
        **_columns("test_accuracy_percent", arm.accuracy),
        "test_accuracy_percent_clipped": arm.accuracy.clipped,
        **_columns("training_loss", arm.training_loss),
    }
    differences = {
        "to_sgd_points": arm.to_sgd,
        "to_sam_points": arm.to_sam,
        "to_float32_sam_points": arm.to_float_sam,
        "to_split_control_points": arm.to_split,
    }
    for key, estimate in differences.items():
        row |= _columns(key, estimate)
        row[f"{key}_p"] = None if estimate is None else estimate.p_value
    verdict, reach = arm.verdict, arm.reach
    row |= {
        "verdict": None if verdict is None else verdict.word,
        "margin_points": None if verdict is None else verdict.margin,
        "verdict_p_holm": None if verdict is None else verdict.p_holm,
        "verdict_note": None if verdict is None else verdict.note,
        "against_sgd": arm.sgd_word,
        "against_sgd_p_holm": arm.p_sgd,
        **_columns("share_of_sam_gain", arm.share),
        **_columns("share_of_sam_gain_over_split_control", arm.share_over_split),
        **_columns("share_of_sam_gain_over_own_controls", arm.share_over_own_controls),
        "gradient_evaluations_per_step": arm.gradients,
        "run_gradients": arm.run_gradients,
        **_columns("step_time", arm.step_time),
        **_columns("run_time", arm.run_time),
        "gradients_to_sam_accuracy": None if reach is None else reach.gradients,
        "time_to_sam_accuracy": None if reach is None else reach.time,
        "reach_note": None if reach is None else reach.note,
        "file_size_ratio_to_float": arm.size_ratio,
    }
    return row | {f"file_bytes_{kind}": size for kind, size in arm.file_bytes.items()}


def _columns(key: str, estimate: Estimate | None) -> dict[str, object]:
    return {
        key: None if estimate is None else estimate.value,
        f"{key}_low": None if estimate is None else estimate.low,
        f"{key}_high": None if estimate is None else estimate.high,
        f"{key}_n": None if estimate is None else estimate.n,
    }
