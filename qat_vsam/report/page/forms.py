"""How values of an arm that are more than a number are written in a cell."""

from __future__ import annotations

from qat_vsam.report import formats
from qat_vsam.report.arm import Arm, Reach
from qat_vsam.report.formats import DASH
from qat_vsam.report.page import cells
from qat_vsam.report.page.cells import Cell


def p(value: float | None) -> str:
    """A p-value in words, or nothing."""
    return "" if value is None else formats.p_text(value)


def reach(found: Reach | None, value: float | None) -> Cell:
    """A cost until SAM's accuracy, or why there is none."""
    return cells.number(value, note=found.note if found else "")


def verdict(arm: Arm) -> Cell:
    """The margin of an arm's verdict, its p-value, and what is to be said of both."""
    found = arm.verdict
    if found is None:
        return cells.EMPTY
    margin = DASH if found.margin is None else f"±{found.margin:.2f}"
    small = tuple(part for part in (p(found.p_holm), found.note) if part)
    return Cell(margin, small, sort=found.p_holm)


def file(arm: Arm) -> Cell:
    """The smallest file that was written, and its format."""
    if not arm.file_bytes:
        return cells.EMPTY
    kind = min(arm.file_bytes, key=lambda kind: arm.file_bytes[kind])
    return cells.byte_count(arm.file_bytes[kind], (kind,))


def proofs(arm: Arm) -> list[str]:
    """Whether each exported file computes what was trained."""
    told = []
    for export in arm.exports:
        agreement = "" if export.agreement is None else f", argmax agreement {formats.agreement(export.agreement)}"
        layer = f" at {export.worst_layer}" if export.passed is False and export.worst_layer else ""
        shown = "" if export.equal or export.passed is None else agreement
        told.append(f"{export.format}: {export.word}{layer}{shown}")
    return told
