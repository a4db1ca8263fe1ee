"""Reports: run folders in, one page with tables, statistics and figures out."""

from qat_vsam.report.arm import Arm
from qat_vsam.report.arms import summarise
from qat_vsam.report.page import build_report
from qat_vsam.report.results import Results, load_results
from qat_vsam.report.roles import assign_roles
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
    "assign_roles",
    "build_report",
    "holm",
    "load_results",
    "mean_interval",
    "paired_difference",
    "pareto_front",
    "share_kept",
    "summarise",
]
