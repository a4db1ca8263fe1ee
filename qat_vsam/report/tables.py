"""The tables of a report as text cells, for page and summary alike, and the frames behind the CSVs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import pandas as pd

from qat_vsam.report.arms import Arm
from qat_vsam.report.formats import DASH, TIMES, agreement, duration, interval, p_text, share, signed, size
from qat_vsam.report.results import Results
from qat_vsam.report.statistics import Estimate


@dataclass(frozen=True)
class Cell:
    """One cell: its lines, and smaller print below them; `tone` is "", "good" or "bad"."""

    lines: tuple[str, ...]
    small: tuple[str, ...] = ()
    tone: str = ""


@dataclass(frozen=True)
class Row:
    """One arm's cells, in the order of the columns; `arm` carries its colour key."""

    arm: Arm
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """A titled table whose rows stand in groups of one precision each."""

    title: str
    columns: tuple[str, ...]
    groups: tuple[tuple[str, tuple[Row, ...]], ...]


def accuracy_table(arms: Sequence[Arm]) -> Table:
    """What every arm reaches, against what it is measured, and what it costs to train."""
    columns = (
        "Seeds",
        "Test accuracy, %",
        "Difference to SGD, same bits",
        "Difference to SAM, same bits",
        "Difference to SAM, float32",
        "Difference to the split control",
        "SAM's gain kept",
        "Gradient evaluations a step",
        f"Step time, {TIMES} SGD",
    )
    rows = [
        Row(
            arm,
            (
                Cell((str(len(arm.seeds)),)),
                _accuracy(arm.accuracy),
                _difference(arm.to_sgd, arm.p_holm),
                _difference(arm.to_sam),
                _difference(arm.to_float_sam),
                _difference(arm.to_split),
                _share(arm),
                Cell((DASH if arm.cost is None else f"{arm.cost:.2f}",)),
                _time(arm),
            ),
        )
        for arm in arms
    ]
    return _table("Accuracy and training cost", columns, rows)


def shipping_table(arms: Sequence[Arm]) -> Table:
    """What comes out of every arm: its size, its export, and whether the two agree."""
    columns = (
        "Packed size",
        "Share of float size",
        "Export",
        "Argmax agreement",
        "Verdict",
        "Test accuracy of the export, %",
        "Latency of the export",
        "Training, one run",
    )
    rows = []
    for arm in arms:
        exports = arm.exports
        verdicts = [_VERDICTS[export.passed] for export in exports]
        worst = tuple(f"worst layer {export.worst_layer}" for export in exports if export.worst_layer)
        tone = "bad" if any(export.passed is False for export in exports) else ""
        cells = (
            Cell((size(arm.packed_bytes),)),
            Cell((DASH if arm.size_ratio is None else f"{arm.size_ratio:.3f}",)),
            _lines(export.format for export in exports),
            _lines(agreement(export.agreement) for export in exports),
            Cell(tuple(verdicts) or (DASH,), worst, tone),
            Cell(
                tuple(DASH if e.accuracy is None else f"{e.accuracy:.2f}" for e in exports) or (DASH,),
                tuple(
                    f"trained {export.trained_accuracy:.2f}"
                    for export in exports[:1]
                    if export.trained_accuracy is not None
                ),
            ),
            _lines(DASH if e.latency_ms is None else f"{e.latency_ms:.2f} ms" for e in exports),
            Cell((DASH if arm.train_seconds is None else duration(arm.train_seconds),)),
        )
        rows.append(Row(arm, cells))
    return _table("What is shipped", columns, rows)


def runs_frame(results: Results, arms: Sequence[Arm]) -> pd.DataFrame:
    """One row per run with every number of it, its exports side by side, and its arm's corrected p-value."""
    frame = results.runs.copy()
    for name, exports in results.exports.groupby("format", sort=True):
        columns = [column for column in exports.columns if column not in ("arm", "seed", "format", "trained_accuracy")]
        renamed = exports[["arm", "seed", *columns]].rename(columns={c: f"export_{name}_{c}" for c in columns})
        frame = frame.merge(renamed, on=["arm", "seed"], how="left")
    p_values = {arm.name: arm.p_holm for arm in arms}
    frame["arm_p_holm_against_sgd"] = pd.to_numeric(frame["arm"].map(p_values))
    return frame


def arms_frame(arms: Sequence[Arm]) -> pd.DataFrame:
    """One row per arm with the numbers of the table, intervals in columns of their own."""
    rows = []
    for arm in arms:
        row: dict[str, object] = {
            "arm": arm.name,
            "label": arm.label,
            "group": arm.group,
            "seeds": len(arm.seeds),
        }
        estimates = {
            "test_accuracy_percent": arm.accuracy,
            "to_sgd_points": arm.to_sgd,
            "to_sam_points": arm.to_sam,
            "to_float32_sam_points": arm.to_float_sam,
            "to_split_control_points": arm.to_split,
            "share_of_sam_gain": arm.share,
        }
        for key, estimate in estimates.items():
            row[key] = estimate.value if estimate else None
            row[f"{key}_low"] = estimate.low if estimate else None
            row[f"{key}_high"] = estimate.high if estimate else None
            row[f"{key}_seeds"] = estimate.n if estimate else None
            if key.startswith("to_"):
                row[f"{key}_p"] = estimate.p_value if estimate else None
        row |= {
            "p_holm_against_sgd": arm.p_holm,
            "gradient_evaluations_per_step": arm.cost,
            "time_ratio_to_sgd": arm.time_ratio,
            "time_source": arm.time_source,
            "train_seconds": arm.train_seconds,
            "packed_bytes": arm.packed_bytes,
            "size_ratio_to_float": arm.size_ratio,
        }
        rows.append(row)
    return pd.DataFrame(rows)


_VERDICTS = {True: "equal", False: "DIFFERS", None: "not proven"}


def _table(title: str, columns: Sequence[str], rows: Sequence[Row]) -> Table:
    """Leaves out the columns in which no arm has anything to say."""
    kept = [i for i in range(len(columns)) if any(row.cells[i] != Cell((DASH,)) for row in rows)]
    rows = [Row(row.arm, tuple(row.cells[i] for i in kept)) for row in rows]
    groups = tuple((name, tuple(members)) for name, members in groupby(rows, key=lambda row: row.arm.group))
    return Table(title, tuple(columns[i] for i in kept), groups)


def _accuracy(estimate: Estimate) -> Cell:
    if estimate.value is None:
        return Cell((DASH,), (estimate.note,))
    return Cell((f"{estimate.value:.2f}",), (_interval(estimate, plus=False),))


def _difference(estimate: Estimate | None, p_holm: float | None = None) -> Cell:
    if estimate is None:
        return Cell((DASH,))
    if estimate.value is None:
        return Cell((DASH,), (estimate.note,))
    small = (_interval(estimate),) if p_holm is None else (_interval(estimate), p_text(p_holm))
    return Cell((signed(estimate.value),), small, _tone(estimate))


def _share(arm: Arm) -> Cell:
    if arm.role == "sam" and arm.to_sgd is not None:
        return Cell(("100 %",), ("by definition",))
    if arm.role == "sgd" and arm.to_sam is not None:
        return Cell(("0 %",), ("by definition",))
    if arm.share is None:
        return Cell((DASH,))
    if arm.share.value is None:
        return Cell((DASH,), (arm.share.note,))
    return Cell(
        (share(arm.share.value),),
        (interval(arm.share, digits=0, plus=False, scale=100),),
        _tone(arm.share),
    )


def _interval(estimate: Estimate, plus: bool = True) -> str:
    return interval(estimate, plus=plus) if estimate.low is not None else estimate.note


def _tone(estimate: Estimate) -> str:
    return "good" if estimate.above_zero else "bad" if estimate.below_zero else ""


def _time(arm: Arm) -> Cell:
    if arm.time_ratio is None:
        return Cell((DASH,))
    return Cell((f"{arm.time_ratio:.2f}",), ("from training",) if arm.time_source == "training" else ())


def _lines(texts: Iterable[str]) -> Cell:
    return Cell(tuple(texts) or (DASH,))
