"""The columns of the table of arms: each declared once, with its title, value, form, and name in arms.csv."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from qat_vsam.report.arm import Arm
from qat_vsam.report.formats import DASH
from qat_vsam.report.page import cells, forms
from qat_vsam.report.page.cells import Cell
from qat_vsam.report.statistics import Estimate

Value = Estimate | float | int | str | None


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        title: its head.
        csv: its name in arms.csv; an estimate fills NAME, NAME_low, NAME_high, NAME_n.
        value: what it says of an arm.
        form: how the page shows it; None for one that only the CSV has.
        note: what the head means, in a sentence.
        span: the head above it that it shares with its neighbours.
        folded: whether the page shows it only when asked.
        better: "high" or "low" where one of them is; it decides which end sorting shows first.
        bar: whether the interval is drawn beside it.
    """

    title: str
    csv: str
    value: Callable[[Arm], Value]
    form: Callable[[Arm], Cell] | None = None
    note: str = ""
    span: str = ""
    folded: bool = False
    better: str = ""
    bar: bool = False

    @property
    def heading(self) -> str:
        """Both heads in one, where only one line is at hand."""
        return f"{self.span}: {self.title}" if self.span else self.title


_ACCURACY = "Accuracy"
_COST = "Training cost (float32 SGD = 1)"
_REACH = "Cost until SAM's accuracy"
_KEPT = "Against the controls"

_COLUMNS = (
    Column("Name", "arm", lambda a: a.name),
    Column("Label", "label", lambda a: a.label),
    Column("Group", "group", lambda a: a.group),
    Column("Precision", "precision", lambda a: a.precision),
    Column("Role", "role", lambda a: a.role),
    Column("Best of its group", "best_of_group", lambda a: a.best),
    Column(
        "Test, %",
        "test_accuracy_percent",
        lambda a: a.accuracy,
        lambda a: cells.estimate(a.accuracy),
        "Mean test accuracy over seeds with its 95 % interval.",
        _ACCURACY,
        better="high",
        bar=True,
    ),
    Column(
        "Difference to SAM of the same bits",
        "to_sam_points",
        lambda a: a.to_sam,
        lambda a: cells.estimate(a.to_sam, plus=True, word=a.verdict.word if a.verdict else ""),
        "Points of test accuracy above SAM of the same precision, paired by seed, with the verdict: better, equivalent "
        "(within the margin), worse or undecided.",
        _ACCURACY,
        better="high",
    ),
    Column("Clipped", "test_accuracy_percent_clipped", lambda a: a.accuracy.clipped),
    Column("Verdict", "verdict", lambda a: a.verdict.word if a.verdict else None),
    Column("Verdict's note", "verdict_note", lambda a: a.verdict.note if a.verdict else None),
    Column(
        "Difference to float32 SAM",
        "to_float32_sam_points",
        lambda a: a.to_float_sam,
        lambda a: cells.estimate(a.to_float_sam, plus=True),
        "Points of test accuracy above SAM at full precision, paired by seed.",
        _ACCURACY,
        better="high",
    ),
    Column(
        "Gradients",
        "run_gradients",
        lambda a: a.run_gradients,
        lambda a: cells.number(a.run_gradients),
        "Gradient evaluations of a run, each weighted by its share of the batch, in those of a float32 SGD run.",
        _COST,
        better="low",
    ),
    Column(
        "Time",
        "run_time",
        lambda a: a.run_time,
        lambda a: cells.estimate(a.run_time),
        "Time of a run in float32 SGD runs, from a bench that times the steps of all arms in turn.",
        _COST,
        better="low",
    ),
    Column(
        "Gradients",
        "gradients_to_sam_accuracy",
        lambda a: a.reach.gradients if a.reach else None,
        lambda a: forms.reach(a.reach, a.reach.gradients if a.reach else None),
        "Gradient evaluations, in float32 SGD runs, until an arm has SAM's final validation accuracy of its precision.",
        _REACH,
        better="low",
    ),
    Column(
        "Time",
        "time_to_sam_accuracy",
        lambda a: a.reach.time if a.reach else None,
        lambda a: forms.reach(a.reach, a.reach.time if a.reach else None),
        "Time, in float32 SGD runs, until an arm has SAM's final validation accuracy of its precision.",
        _REACH,
        better="low",
    ),
    Column("Reach's note", "reach_note", lambda a: a.reach.note if a.reach else None),
    Column(
        "Training loss",
        "training_loss",
        lambda a: a.training_loss,
        lambda a: cells.estimate(a.training_loss, digits=3),
        "Mean training loss of the last epoch: near zero where the training images are fitted.",
        better="low",
    ),
    Column("Margin", "margin_points", lambda a: a.verdict.margin if a.verdict else None),
    Column(
        "Margin, p",
        "verdict_p_holm",
        lambda a: a.verdict.p_holm if a.verdict else None,
        lambda a: forms.verdict(a),
        "How many points below SAM still count as equivalent, and the p-value of the verdict after Holm's correction "
        "over all claims of the page.",
        _KEPT,
        folded=True,
    ),
    Column(
        "Difference to SGD of the same bits",
        "to_sgd_points",
        lambda a: a.to_sgd,
        lambda a: cells.estimate(a.to_sgd, plus=True, word=a.sgd_word or "", p=forms.p(a.p_sgd)),
        "Points of test accuracy above SGD of the same precision, paired by seed; p-values are Holm-corrected.",
        _KEPT,
        folded=True,
        better="high",
    ),
    Column("Against SGD", "against_sgd", lambda a: a.sgd_word),
    Column("p against SGD", "against_sgd_p_holm", lambda a: a.p_sgd),
    Column(
        "Difference to the split control",
        "to_split_control_points",
        lambda a: a.to_split,
        lambda a: cells.estimate(a.to_split, plus=True),
        "Points of test accuracy above SGD that splits its batch as the method does.",
        _KEPT,
        folded=True,
        better="high",
    ),
    Column(
        "Share of SAM's gain",
        "share_of_sam_gain",
        lambda a: a.share,
        lambda a: cells.percentage(a.share),
        "How much of SAM's gain over SGD an arm keeps; only where that gain is established.",
        _KEPT,
        folded=True,
        better="high",
    ),
    Column(
        "Share over the split control",
        "share_of_sam_gain_over_split_control",
        lambda a: a.share_over_split,
        lambda a: cells.percentage(a.share_over_split),
        "The same with the split control in the place of SGD, though SAM does not split its batch.",
        _KEPT,
        folded=True,
        better="high",
    ),
    Column(
        "Share over own controls",
        "share_of_sam_gain_over_own_controls",
        lambda a: a.share_over_own_controls,
        lambda a: cells.percentage(a.share_over_own_controls),
        "The gain over the split control as a share of SAM's gain over SGD: each against its own control.",
        _KEPT,
        folded=True,
        better="high",
    ),
    Column(
        "Gradients a step",
        "gradient_evaluations_per_step",
        lambda a: a.gradients,
        lambda a: cells.number(a.gradients),
        "Gradient evaluations of one step, each weighted by its share of the batch.",
        "One step",
        folded=True,
        better="low",
    ),
    Column(
        "Time, in float32 SGD steps",
        "step_time",
        lambda a: a.step_time,
        lambda a: cells.estimate(a.step_time),
        "Median time of a step over that of a float32 SGD step, from the bench.",
        "One step",
        folded=True,
        better="low",
    ),
    Column(
        "Seeds",
        "seeds",
        lambda a: len(a.seeds),
        lambda a: cells.number(len(a.seeds), 0),
        "Finished runs of an arm.",
        "Sample",
        folded=True,
        better="high",
    ),
    Column(
        "Draws",
        "draws",
        lambda a: a.draws,
        lambda a: cells.number(a.draws, 0),
        "Different draws of training images among them.",
        "Sample",
        folded=True,
        better="high",
    ),
    Column(
        "File",
        "smallest_file_bytes",
        lambda a: min(a.file_bytes.values(), default=None),
        lambda a: forms.file(a),
        "Size of the smallest exported file, as written, and its format.",
        better="low",
    ),
    Column(
        "Packed share",
        "file_size_ratio_to_float",
        lambda a: a.size_ratio,
        lambda a: cells.number(a.size_ratio, 3),
        "Bytes of the packed file over those of the float weights.",
        "Exports",
        folded=True,
        better="low",
    ),
    Column(
        "Proof",
        "export_proofs",
        lambda a: "; ".join(forms.proofs(a)) or None,
        lambda a: cells.words("; ".join(forms.proofs(a)) or None),
        "Whether the exported files, read back, compute what was trained.",
        "Exports",
        folded=True,
    ),
)


def csv_columns(arms: Sequence[Arm]) -> list[Column]:
    """All columns of arms.csv: the declared ones, and one for each format that was written."""
    kinds = sorted({kind for arm in arms for kind in arm.file_bytes})
    return [*_COLUMNS, *(Column(kind, f"file_bytes_{kind}", partial(_bytes, kind)) for kind in kinds)]


def page_columns(arms: Sequence[Arm]) -> list[Column]:
    """The columns of the page in which at least one arm has something to say; the folded ones last."""
    told = [column for column in _COLUMNS if column.form and any(column.form(arm).text != DASH for arm in arms)]
    return sorted(told, key=lambda column: column.folded)


def _bytes(kind: str, arm: Arm) -> int | None:
    return arm.file_bytes.get(kind)
