"""The tables of a report as text cells, for page and summary alike, and the frames behind the CSVs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from qat_vsam.report.arm import Arm
from qat_vsam.report.choices import Choice, fairness
from qat_vsam.report.formats import DASH, TIMES, agreement, interval, p_text, share, signed, size
from qat_vsam.report.statistics import CONFIDENCE, NOT_ESTABLISHED, Estimate


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
    """A titled table whose rows stand in groups of one precision each; `note` is a sentence below it."""

    title: str
    columns: tuple[str, ...]
    groups: tuple[tuple[str, tuple[Row, ...]], ...]
    note: str = ""


def methods_table(arms: Sequence[Arm]) -> Table:
    """All methods, the most accurate of each precision first, and what each costs to train."""
    columns = (
        "Seeds",
        "Test accuracy, %",
        "Difference to SGD, same bits",
        "Difference to SAM, same bits",
        "Gradient evaluations a step",
        f"Gradient evaluations of the run, {TIMES} SGD",
        f"Step time, {TIMES} SGD",
        f"Time of the run, {TIMES} SGD",
    )
    # where all arms train as long as SGD, a run's ratio is a step's
    longer = any(_apart(arm.run_gradients, arm.gradients) for arm in arms)
    rows = [
        Row(
            arm,
            (
                Cell((str(len(arm.seeds)),)),
                _accuracy(arm.accuracy),
                _difference(arm.to_sgd, arm.p_sgd),
                _difference(arm.to_sam),
                _number(arm.gradients),
                _number(arm.run_gradients if longer else None),
                _time(arm),
                _number(arm.run_time.value if longer and arm.run_time else None),
            ),
        )
        for arm in by_accuracy(arms)
    ]
    return _table("All methods, by accuracy", columns, rows)


def gains_table(arms: Sequence[Arm]) -> Table:
    """What is kept of SAM's gain, over SGD and over the split control; in place of a share where SAM gains nothing."""
    columns = (
        "SAM's gain kept, over SGD",
        "SAM's gain kept, over the split control",
        "Difference to the split control",
        "Difference to SAM, float32",
    )
    rows = [
        Row(
            arm,
            (
                _share(arm.share, arm.to_sgd),
                _share(arm.share_over_split, arm.to_split),
                _difference(arm.to_split),
                _difference(arm.to_float_sam),
            ),
        )
        for arm in arms
    ]
    told = [row for row in rows if any(cell != Cell((DASH,)) for cell in row.cells)]
    return _table("What is kept of SAM's gain", columns, told)


def choices_table(choices: Sequence[Choice], arms: Sequence[Arm]) -> Table:
    """How settings were chosen: trials, grid, choice, and whether a better one may lie beyond the grid."""
    columns = ("Trials", "Grid", "Chosen", "Validation accuracy, %", "At the end of its grid")
    labels = {arm.name: arm.label for arm in arms}
    known = {choice.arm: choice for choice in choices}
    rows = [Row(arm, _choice_cells(known[arm.name], labels)) for arm in arms if arm.name in known]
    return _table(
        "How settings were chosen", columns, rows, note=fairness(choices, [arm.name for arm in arms if arm.trained])
    )


def by_accuracy(arms: Sequence[Arm]) -> list[Arm]:
    """The arms group by group, the most accurate first."""
    groups = list(dict.fromkeys(arm.group for arm in arms))
    return sorted(arms, key=lambda arm: (groups.index(arm.group), -(arm.accuracy.value or 0.0)))


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
    )
    rows = []
    for arm in arms:
        exports = arm.exports
        verdicts = [export.word for export in exports]
        worst = tuple(f"worst layer {export.worst_layer}" for export in exports if export.worst_layer)
        tone = "bad" if any(export.passed is False for export in exports) else ""
        cells = (
            Cell((size(arm.file_bytes.get("packed")),)),
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
        )
        rows.append(Row(arm, cells))
    return _table("What is shipped", columns, rows)


def _table(title: str, columns: Sequence[str], rows: Sequence[Row], note: str = "") -> Table:
    """Leaves out the columns in which no arm has anything to say."""
    kept = [i for i in range(len(columns)) if any(row.cells[i] != Cell((DASH,)) for row in rows)]
    rows = [Row(row.arm, tuple(row.cells[i] for i in kept)) for row in rows]
    groups = tuple((name, tuple(members)) for name, members in groupby(rows, key=lambda row: row.arm.group))
    return Table(title, tuple(columns[i] for i in kept), groups, note)


def _accuracy(estimate: Estimate) -> Cell:
    if estimate.value is None:
        return Cell((DASH,), (estimate.note,))
    return Cell((f"{estimate.value:.2f}",), (_interval(estimate, plus=False),))


def _difference(estimate: Estimate | None, p_holm: float | None = None) -> Cell:
    if estimate is None:
        return Cell((DASH,))
    if estimate.value is None:
        return Cell((DASH,), (estimate.note,))
    if p_holm is None:
        return Cell((signed(estimate.value),), (_interval(estimate),), _tone(estimate))
    # one of many tests is marked only where it survives their correction
    tone = _tone(estimate) if p_holm < 1 - CONFIDENCE else ""
    return Cell((signed(estimate.value),), (_interval(estimate), p_text(p_holm)), tone)


def _share(estimate: Estimate | None, difference: Estimate | None) -> Cell:
    if estimate is None:
        return Cell((DASH,))
    if estimate.value is not None:
        small = estimate.note if estimate.low is None else interval(estimate, digits=0, plus=False, scale=100)
        return Cell((share(estimate.value),), (small,), _tone(estimate))
    if estimate.note != NOT_ESTABLISHED:
        return Cell((DASH,), (estimate.note,))
    if difference is None or difference.value is None:
        return Cell((DASH,), (NOT_ESTABLISHED,))
    return Cell((f"{signed(difference.value)} points",), (_interval(difference), NOT_ESTABLISHED))


def _choice_cells(choice: Choice, labels: Mapping[str, str]) -> tuple[Cell, ...]:
    chosen = Cell(tuple(f"{key} {value}" for key, value in choice.chosen.items()))
    source = None if choice.same_as is None else labels.get(choice.same_as, choice.same_as)
    if not choice.grid:
        return Cell((DASH,), (f"as {source}",)), Cell((DASH,)), chosen, Cell((DASH,)), Cell((DASH,))
    over = () if source is None else (f"over what was chosen for {source}",)
    diverged = (f"{choice.diverged} runs diverged",) if choice.diverged else ()
    accuracy = choice.validation_accuracy
    return (
        Cell((str(choice.trials),), (f"{choice.seeds} seeds each", *over, *diverged)),
        Cell((), tuple(f"{key}: {', '.join(map(str, values))}" for key, values in choice.grid.items())),
        chosen,
        Cell((DASH if accuracy is None else f"{100 * accuracy:.2f}",)),
        Cell(choice.at_end or (DASH,), tone="bad" if choice.at_end else ""),
    )


def _number(value: float | None) -> Cell:
    return Cell((DASH if value is None else f"{value:.2f}",))


def _apart(a: float | None, b: float | None) -> bool:
    return a is not None and b is not None and abs(a - b) > 0.01 * b


def _interval(estimate: Estimate, plus: bool = True) -> str:
    return interval(estimate, plus=plus) if estimate.low is not None else estimate.note


def _tone(estimate: Estimate) -> str:
    return "good" if estimate.above_zero else "bad" if estimate.below_zero else ""


def _time(arm: Arm) -> Cell:
    return _number(None if arm.step_time is None else arm.step_time.value)


def _lines(texts: Iterable[str]) -> Cell:
    return Cell(tuple(texts) or (DASH,))
