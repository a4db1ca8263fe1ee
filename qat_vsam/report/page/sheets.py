"""The CSVs beside a page: what a reader opens in a spreadsheet or reads with pandas."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from qat_vsam.report.arm import Arm
from qat_vsam.report.page.columns import csv_columns
from qat_vsam.report.results import Results
from qat_vsam.report.statistics import Estimate

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def arms_frame(arms: Sequence[Arm]) -> pd.DataFrame:
    """One row an arm, in the declared columns; an estimate has its interval and its seeds in columns of their own."""
    columns = csv_columns(arms)
    values = {column.csv: [column.value(arm) for arm in arms] for column in columns}
    frame: dict[str, list[object]] = {}
    for name, cells in values.items():
        if not any(isinstance(cell, Estimate) for cell in cells):
            frame[name] = list(cells)
            continue
        estimates = [cell if isinstance(cell, Estimate) else None for cell in cells]
        frame[name] = [cell.value if cell else None for cell in estimates]
        frame[f"{name}_low"] = [cell.low if cell else None for cell in estimates]
        frame[f"{name}_high"] = [cell.high if cell else None for cell in estimates]
        frame[f"{name}_n"] = [cell.n if cell else None for cell in estimates]
        if name.startswith("to_"):
            # as the test gave it, before the correction
            frame[f"{name}_p"] = [cell.p_value if cell else None for cell in estimates]
    return pd.DataFrame(frame)


def runs_frame(results: Results) -> pd.DataFrame:
    """One row a run, its exports side by side."""
    frame = results.runs
    for name, rows in results.exports.groupby("format", sort=True):
        columns = [column for column in rows.columns if column not in ("arm", "seed", "format", "trained_accuracy")]
        renamed = rows[["arm", "seed", *columns]].rename(columns={c: f"export_{name}_{c}" for c in columns})
        frame = frame.merge(renamed, on=["arm", "seed"], how="left")
    return frame


def csv(frame: pd.DataFrame) -> str:
    """The text of a CSV in which no cell is a formula to a spreadsheet.

    Example:
        >>> csv(pd.DataFrame({"label": ["=1+1", "SGD"], "points": [-0.5, 1.0]}))
        "label,points\\n'=1+1,-0.5\\nSGD,1.0\\n"
    """
    safe = frame.copy()
    for column in safe.columns:
        if not pd.api.types.is_numeric_dtype(safe[column]):
            safe[column] = safe[column].map(_neutral)
    safe.columns = pd.Index([_neutral(column) for column in safe.columns])
    return safe.to_csv(index=False, lineterminator="\n")


def _neutral(value: object) -> object:
    return "'" + value if isinstance(value, str) and value.startswith(_FORMULA) else value
