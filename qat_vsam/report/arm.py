"""The record of one arm: what it achieved and cost, next to the arms that it must be measured against."""

from __future__ import annotations

from dataclasses import dataclass, field

from qat_vsam.report.exports import Export
from qat_vsam.report.statistics import Estimate


@dataclass(frozen=True)
class Verdict:
    """What may be said of an arm against SAM of the same precision.

    Attributes:
        word: "better", "equivalent", "worse" or "undecided".
        margin: in points, within which an arm is equivalent; None where none is declared and none can be had.
        p_holm: of the word (where it is undecided: of the nearer one), corrected over all claims of the page.
        note: why it is undecided, or has no margin.
    """

    word: str
    margin: float | None
    p_holm: float | None
    note: str = ""


@dataclass(frozen=True)
class Reach:
    """When an arm's mean validation accuracy first reached SAM's final one.

    Attributes:
        gradients: gradient evaluations up to there, in those of a float32 SGD run; None where it never was.
        time: training time up to there, in float32 SGD runs; None without a bench.
        note: "not reached", or "no curve".
    """

    gradients: float | None
    time: float | None
    note: str = ""


@dataclass(frozen=True)
class Arm:
    """One row of the table. Accuracies and differences are in %, points and shares as fractions.

    Attributes:
        name, label: as the recipe calls it.
        method: the name without its bit width, e.g. "vsam-late": it fixes the colour.
        method_label: the label without its bit width.
        group: arms of one group share bit width and target.
        role: one of "float_reference", "post_training", "sgd", "split_sgd", "vsam", "sam", "other".
        draws: how many different draws of the data its seeds saw.
        accuracy: test accuracy over seeds, its interval cut at 0 and 100.
        training_loss: mean training loss of the last epoch, over seeds.
        to_float_sam, to_sam, to_sgd, to_split: paired differences; None where there is no such arm.
        verdict: against SAM of the same precision; None for SAM, and where there is none.
        sgd_word: "better", "worse" or "not established" against SGD of the same precision, by the corrected `p_sgd`.
        claims: how many claims of the page its p-values are corrected for.
        share, share_over_split, share_over_own_controls: share of SAM's gain kept: (arm - SGD) / (SAM - SGD);
            (arm - split) / (SAM - split), in which SAM does not split; (arm - split) / (SAM - SGD), in which each is
            measured against its own control. None where the question does not arise, without a value where SAM's gain
            is not established.
        gradients: gradient evaluations a step; None for an arm that was not trained.
        run_gradients: of a run, in those of a float32 SGD run.
        step_time, run_time: of a step and of a run, in those of float32 SGD; None without a bench.
        reach: when it reached SAM's final validation accuracy; None where there is no SAM.
        file_bytes: format -> size of the first file that was written.
        size_ratio: the packed file's size over that of the float model; None where none was written.
        best: the most accurate trained arm of its group.
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
    draws: int = 1
    training_loss: Estimate | None = None
    to_float_sam: Estimate | None = None
    to_sam: Estimate | None = None
    to_sgd: Estimate | None = None
    to_split: Estimate | None = None
    verdict: Verdict | None = None
    sgd_word: str | None = None
    p_sgd: float | None = None
    claims: int = 0
    share: Estimate | None = None
    share_over_split: Estimate | None = None
    share_over_own_controls: Estimate | None = None
    gradients: float | None = None
    run_gradients: float | None = None
    step_time: Estimate | None = None
    run_time: Estimate | None = None
    reach: Reach | None = None
    file_bytes: dict[str, int] = field(default_factory=dict)
    size_ratio: float | None = None
    exports: tuple[Export, ...] = ()
    best: bool = False

    @property
    def trained(self) -> bool:
        """Whether there was anything to train."""
        return self.role not in ("float_reference", "post_training")
