"""The answer of a study: at most five rows and one sentence, no more than the tests allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qat_vsam.report.arm import Arm
from qat_vsam.report.formats import TIMES, interval, p_text, signed
from qat_vsam.report.names import FLOAT
from qat_vsam.report.statistics import Estimate
from qat_vsam.report.verdicts import FEWEST_SEEDS, not_established


@dataclass(frozen=True)
class AnswerRow:
    """One line of the answer.

    Attributes:
        label: of the arm.
        arm: itself.
        accuracy: its test accuracy in %.
        cost: of a run, in float32 SGD runs, as text; "" where it is not known.
        verdict: what may be said of it, as text.
    """

    label: str
    arm: Arm
    accuracy: Estimate
    cost: str
    verdict: str


def answer_rows(arms: Sequence[Arm]) -> tuple[AnswerRow, ...]:
    """SGD and SAM in float32, and SGD, SAM and VSAM of the bits in question; what there is of them."""
    floats = [arm for arm in arms if arm.precision == FLOAT]
    group = group_in_question(arms)
    chosen = [role_in(floats, "sgd"), role_in(floats, "sam"), *references(group), main_arm(group)]
    shown = list(dict.fromkeys(arm.name for arm in chosen if arm is not None)) or [arms[0].name]
    named = {arm.name: arm for arm in arms}
    return tuple(
        AnswerRow(
            named[name].label, named[name], named[name].accuracy, cost_text(named[name]), verdict_text(named[name])
        )
        for name in shown
    )


def answer_sentence(arms: Sequence[Arm]) -> str:
    """The answer in one sentence, about the bits in question and the first VSAM of them (never the best one)."""
    group = group_in_question(arms)
    sgd, sam = references(group)
    main = main_arm(group)
    told = [arm for arm in (main, sam, sgd) if arm is not None] or [group[-1]]
    accuracies = ", ".join(f"{arm.method_label} {_percent(arm.accuracy)}" for arm in told)
    subject = told[0]
    verdict = verdict_text(subject)
    price = _price(subject)
    if main is None and verdict:
        verdict = f"{subject.method_label} is {verdict}" if subject is sam else verdict
    text = f"{subject.group}: {accuracies}"
    text += f": {verdict}" if verdict else ""
    text += f"{',' if subject.verdict and subject.verdict.word == 'undecided' else ''} {price}" if price else ""
    if main is not None and sam is not None and sgd is not None and sam.sgd_word == "not established" and _enough(sam):
        text += f". SAM's own gain over SGD is {not_established(sam.to_sgd)}"
    return text + "."


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


def cost_text(arm: Arm) -> str:
    """What a run costs, in float32 SGD runs.

    Example:
        "1.15 × gradients, 1.31 × time"
    """
    parts = [] if arm.run_gradients is None else [f"{arm.run_gradients:.2f} {TIMES} gradients"]
    time = None if arm.run_time is None else arm.run_time.value
    parts += [] if time is None else [f"{time:.2f} {TIMES} time"]
    return ", ".join(parts)


def verdict_text(arm: Arm) -> str:
    """What may be said of an arm: against SAM of its precision, or of SAM against SGD.

    Example:
        "equivalent to SAM (+0.04 [-0.14, +0.22], margin 0.23)"
    """
    if arm.verdict is None or arm.to_sam is None:
        return _against_sgd(arm)
    word, margin = arm.verdict.word, arm.verdict.margin
    if arm.to_sam.n < FEWEST_SEEDS:
        return f"undecided against SAM ({arm.verdict.note})"
    if word == "undecided":
        null = _null(arm.to_sam, arm.verdict.p_holm, margin)
        return f"undecided against SAM ({null}" + ("" if margin is None else f"; margin {margin:.2f}") + ")"
    numbers = _numbers(arm.to_sam) + ("" if margin is None else f", margin {margin:.2f}")
    return f"{word} {'to' if word == 'equivalent' else 'than'} SAM ({numbers})"


def _against_sgd(arm: Arm) -> str:
    if arm.to_sgd is None or arm.sgd_word is None:
        return ""
    if arm.sgd_word != "not established":
        return f"{arm.sgd_word} than SGD ({_numbers(arm.to_sgd)})"
    if arm.to_sgd.n < FEWEST_SEEDS:
        seeds = "1 seed" if arm.to_sgd.n == 1 else f"{arm.to_sgd.n} seeds"
        return f"undecided against SGD ({seeds}: no difference can be established)"
    return f"undecided against SGD ({_null(arm.to_sgd, arm.p_sgd)})"


def _enough(sam: Arm) -> bool:
    return sam.to_sgd is not None and sam.to_sgd.n >= FEWEST_SEEDS


def _null(difference: Estimate, p_holm: float | None, margin: float | None = None) -> str:
    """A null result; where the interval alone would have claimed something, with the p-value that forbids it."""
    text = not_established(difference)
    low, high = difference.low, difference.high
    inside = margin is not None and low is not None and high is not None and -margin < low and high < margin
    if p_holm is not None and (inside or difference.above_zero or difference.below_zero):
        text += f", {p_text(p_holm)} over all claims"
    return text


def _numbers(difference: Estimate) -> str:
    value = "" if difference.value is None else signed(difference.value)
    return value if difference.low is None else f"{value} {interval(difference)}"


def _percent(accuracy: Estimate) -> str:
    return "of unknown accuracy" if accuracy.value is None else f"{accuracy.value:.1f} %"


def _price(arm: Arm) -> str:
    if arm.run_gradients is None:
        return ""
    time = None if arm.run_time is None else arm.run_time.value
    also = "" if time is None else f" and {time:.2f} of its time"
    return f"at {arm.run_gradients:.2f} of float32 SGD's gradients{also}"
