"""The record of one arm: what it achieved and cost, next to the arms that it must be measured against."""

from __future__ import annotations

from dataclasses import dataclass

from qat_vsam.report.exports import Export
from qat_vsam.report.statistics import Estimate


@dataclass(frozen=True)
class Arm:
    """One row of the table. Accuracies and differences are in %, points and shares as fractions.

    Attributes:
        name, label: as the recipe calls it.
        method: the name without its bit width, e.g. "vsam-variance": it fixes the colour.
        method_label: the label without its bit width.
        group: arms of one group share bit width and target.
        role: one of "float_reference", "post_training", "sgd", "split_sgd", "vsam", "sam", "other".
        accuracy: test accuracy over seeds.
        to_float_sam, to_sam, to_sgd, to_split: paired differences; None where there is no such arm.
        p_holm: p-value of `to_sgd`, corrected within its family (see `gains`).
        share, share_over_split: share of SAM's gain kept, over SGD and over the split control; None where the
            question does not arise.
        cost: gradient evaluations a step; None for an arm that was not trained.
        run_cost: gradient evaluations of the run in runs of SGD of the same group.
        time_ratio, run_time: time of a step, and of the run, in those of SGD of the same group.
        time_source: "bench" (interleaved) or "training" (from the runs' own clocks).
    """

    name: str
    label: str
    method: str
    method_label: str
    precision: str
    group: str
    role: str
    seeds: tuple[int, ...]
    accuracy: Estimate
    to_float_sam: Estimate | None = None
    to_sam: Estimate | None = None
    to_sgd: Estimate | None = None
    to_split: Estimate | None = None
    p_holm: float | None = None
    share: Estimate | None = None
    share_over_split: Estimate | None = None
    cost: float | None = None
    run_cost: float | None = None
    time_ratio: float | None = None
    run_time: float | None = None
    time_source: str | None = None
    train_seconds: float | None = None
    packed_bytes: float | None = None
    size_ratio: float | None = None
    exports: tuple[Export, ...] = ()
