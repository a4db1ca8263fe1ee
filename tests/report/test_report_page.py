"""The page: written whole, safe, self-contained, and the same every time."""

from __future__ import annotations

from pathlib import Path

import pytest

from qat_vsam.report import build_report


@pytest.fixture(scope="session")
def report(comparison: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report on the full synthetic comparison."""
    out = tmp_path_factory.mktemp("report")
    build_report(comparison, out, title="Digits", command="qat-vsam compare digits", notes=("rho was tuned.",))
    return out


def test_a_report_is_a_page_a_summary_two_csvs_and_figures_in_both_formats(report: Path) -> None:
    files = {path.relative_to(report).as_posix() for path in report.rglob("*") if path.is_file()}
    figures = ("accuracy_vs_evaluations", "accuracy_vs_time", "learning_curves", "cost_and_psf")
    drawn = {f"figures/{name}.{ending}" for name in figures for ending in ("png", "svg")}
    assert files == {"index.html", "summary.md", "results.csv", "arms.csv"} | drawn
