"""Reports: run folders in, one page with tables, statistics and figures out."""

from qat_vsam.report.arms import Arm, summarise
from qat_vsam.report.page import build_report
from qat_vsam.report.results import Results, load_results
from qat_vsam.report.statistics import (
    Estimate,
    holm,
    mean_interval,
    paired_difference,
    pareto_front,
    share_kept,
)

__all__ = [
    "Arm",
    "Estimate",
    "Results",
    "build_report",
    "holm",
    "load_results",
    "mean_interval",
    "paired_difference",
    "pareto_front",
    "share_kept",
    "summarise",
]
