"""Reports: the runs of a study in, one page with tables, statistics and figures out."""

from qat_vsam.report.arm import Arm, Reach, Verdict
from qat_vsam.report.arms import summarise
from qat_vsam.report.page import build_all, build_report, write_report
from qat_vsam.report.records import Record, read_records, record_of, write_records
from qat_vsam.report.results import Results, load_results
from qat_vsam.report.roles import assign_roles
from qat_vsam.report.statistics import (
    Estimate,
    accuracy_interval,
    holm,
    mean_interval,
    paired_difference,
    pareto_front,
    ratio_of_gains,
    share_kept,
)
from qat_vsam.report.study import AnswerRow, Study, answer_lines, load_study
from qat_vsam.report.verdicts import Judgement, Scores, judge

__all__ = [
    "AnswerRow",
    "Arm",
    "Estimate",
    "Judgement",
    "Reach",
    "Record",
    "Results",
    "Scores",
    "Study",
    "Verdict",
    "accuracy_interval",
    "answer_lines",
    "assign_roles",
    "build_all",
    "build_report",
    "holm",
    "judge",
    "load_results",
    "load_study",
    "mean_interval",
    "paired_difference",
    "pareto_front",
    "ratio_of_gains",
    "read_records",
    "record_of",
    "share_kept",
    "summarise",
    "write_records",
    "write_report",
]
