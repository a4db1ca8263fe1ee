"""The answer of a study: at most five rows and a few sentences, no more than the tests allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qat_vsam.report.arm import Arm
from qat_vsam.report.names import FLOAT
from qat_vsam.report.statistics import Estimate
from qat_vsam.report.verdicts import FEWEST_SEEDS
from qat_vsam.report.wording import against, cost_sentence, cost_text, verdict_sentences, verdict_words


@dataclass(frozen=True)
class AnswerRow:
    """One line of the answer.

    Attributes:
        label: of the arm.
        arm: itself.
        accuracy: its test accuracy in %.
        cost: of a run, in float32 SGD runs, as text; "" where it is not known.
        verdict: what may be said of it, in a few words.
        details: the numbers behind the verdict, a line each.
    """

    label: str
    arm: Arm
    accuracy: Estimate
    cost: str
    verdict: str
    details: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """Verdict and details in one line."""
        return ": ".join(part for part in (self.verdict, "; ".join(self.details)) if part)


def answer_rows(arms: Sequence[Arm]) -> tuple[AnswerRow, ...]:
    """SGD and SAM in float32, and SGD, SAM and VSAM of the bits in question; what there is of them."""
    floats = [arm for arm in arms if arm.precision == FLOAT]
    group = group_in_question(arms)
    chosen = [role_in(floats, "sgd"), role_in(floats, "sam"), *references(group), main_arm(group)]
    shown = list({arm.name: arm for arm in chosen if arm is not None}.values()) or [arms[0]]
    timed = any(arm.run_time is not None for arm in shown)
    return tuple(AnswerRow(arm.label, arm, arm.accuracy, cost_text(arm, timed), *verdict_words(arm)) for arm in shown)


def answer_sentence(arms: Sequence[Arm]) -> str:
    """The answer in words, about the bits in question and the first VSAM of them (never the best one).

    What follows in short are the other VSAMs of these bits, and the VSAM of each other precision.
    """
    group = group_in_question(arms)
    sgd, sam = references(group)
    main = main_arm(group)
    told = [arm for arm in (main, sam, sgd) if arm is not None] or [group[-1]]
    subject = told[0]
    accuracies = ", ".join(f"{arm.method_label} {_percent(arm.accuracy)}" for arm in told)
    sentences = [f"{subject.group}: {accuracies}.", verdict_sentences(subject), cost_sentence(subject)]
    if main is not None and sam is not None and _gain_is_open(sam):
        sentences.append(verdict_sentences(sam))
    for arm in group:
        if arm.role == "vsam" and arm is not main and arm.verdict is not None and arm.to_sam is not None:
            word, details = verdict_words(arm)
            sentences.append(f"{arm.method_label}: {word} ({'; '.join(details)}).")
    for name in dict.fromkeys(arm.group for arm in arms if arm.group != subject.group):
        other = main_arm([arm for arm in arms if arm.group == name])
        if other is not None and other.verdict is not None:
            sentences.append(f"{other.label}: {_brief(other.verdict.word)}.")
    return " ".join(sentence for sentence in sentences if sentence)


def group_in_question(arms: Sequence[Arm]) -> list[Arm]:
    """The quantized arms of most bits that have SGD, SAM and a VSAM; else the group that has most of the three."""
    groups = [[arm for arm in arms if arm.group == name] for name in dict.fromkeys(arm.group for arm in arms)]

    def completeness(group: Sequence[Arm]) -> tuple[int, bool]:
        found = sum(arm is not None for arm in (*references(group), main_arm(group)))
        return found, group[0].precision != FLOAT

    # groups are in the order of bits, and of equals max keeps the first
    return max(groups, key=completeness)


def references(group: Sequence[Arm]) -> tuple[Arm | None, Arm | None]:
    """SGD and SAM of a group."""
    return role_in(group, "sgd"), role_in(group, "sam")


def role_in(group: Sequence[Arm], role: str) -> Arm | None:
    """The first arm of that role."""
    return next((arm for arm in group if arm.role == role), None)


def main_arm(group: Sequence[Arm]) -> Arm | None:
    """The VSAM of a group: the one of that plain name, else the first."""
    candidates = [arm for arm in group if arm.role == "vsam"]
    return next((arm for arm in candidates if arm.method == "vsam"), candidates[0] if candidates else None)


def _gain_is_open(sam: Arm) -> bool:
    return sam.to_sgd is not None and sam.to_sgd.n >= FEWEST_SEEDS and sam.sgd_word == "not established"


def _brief(word: str) -> str:
    return word if word == "undecided" else against(word, "SAM")


def _percent(accuracy: Estimate) -> str:
    return "of unknown accuracy" if accuracy.value is None else f"{accuracy.value:.2f} %"
