"""Verdicts, costs and terms in words: what a reader needs to follow the answer, and no claim beyond the tests."""

from __future__ import annotations

import re
from collections.abc import Sequence

from qat_vsam.report.arm import Arm
from qat_vsam.report.formats import TIMES, interval, p_text, signed
from qat_vsam.report.names import FLOAT, precision_label
from qat_vsam.report.statistics import Estimate
from qat_vsam.report.verdicts import FEWEST_SEEDS

BASELINE = "baseline"
_OPEN = ("undecided", "not established")
_LINKS = {"better": "better than", "worse": "worse than", "equivalent": "equivalent to"}


def verdict_words(arm: Arm) -> tuple[str, tuple[str, ...]]:
    """What may be said of an arm, and the numbers behind it, each as a line of its own.

    Whatever is judged against SAM is told against SGD as well. SGD itself is the baseline.

    Example:
        "equivalent to SAM", ("+0.04 [-0.14, +0.22]; counts as equal within ±0.23", "better than SGD: +1.19 [...]")
    """
    if arm.role == "sgd":
        return BASELINE, ()
    over_sgd = _against_sgd(arm)
    if arm.verdict is None or arm.to_sam is None:
        return (over_sgd[0], (over_sgd[1],)) if over_sgd else ("", ())
    margin = "" if arm.verdict.margin is None else f"counts as equal within ±{arm.verdict.margin:.2f}"
    told = [numbers(arm.to_sam), margin, _uncertain_of_sam(arm), arm.verdict.note]
    lines = ["; ".join(part for part in told if part)]
    lines += [": ".join(over_sgd)] if over_sgd else []
    return against(arm.verdict.word, "SAM"), tuple(lines)


def verdict_sentences(arm: Arm) -> str:
    """The same in whole sentences; "" where there is nothing to say, as of SGD.

    Example:
        "VSAM is undecided against SAM: a loss of up to 0.14 or a gain of up to 0.22 points is possible; within 0.23
        points it would count as equal. It is better than SGD: a gain of 0.97 to 1.41 points."
    """
    if arm.role == "sgd":
        return ""
    sentences = []
    if arm.verdict is not None and arm.to_sam is not None:
        word, margin = arm.verdict.word, arm.verdict.margin
        counts = "counts" if word == "equivalent" else "would count"
        equal = "" if margin is None else f"; within {margin:.2f} points it {counts} as equal"
        doubt = _but(_uncertain_of_sam(arm))
        # it stands beside what is doubted: the difference, or that it is small enough
        beyond = arm.to_sam.above_zero or arm.to_sam.below_zero
        told = f"{doubt}{equal}" if beyond else f"{equal}{doubt}"
        sentences.append(f"is {against(word, 'SAM')}: {_in_words(arm.to_sam, word)}{told}.")
    # that seeds are too few is said once
    if arm.to_sgd is not None and arm.sgd_word is not None and not (sentences and arm.to_sgd.n < FEWEST_SEEDS):
        doubt = _but(_uncertain(arm, arm.sgd_word, arm.to_sgd, arm.p_sgd))
        sentences.append(f"is {against(arm.sgd_word, 'SGD')}: {_in_words(arm.to_sgd, arm.sgd_word)}{doubt}.")
    subjects = [arm.method_label, "It"]
    return " ".join(f"{subject} {sentence}" for subject, sentence in zip(subjects, sentences, strict=False))


def against(word: str, peer: str) -> str:
    """A word of a verdict with what it is about.

    Example:
        >>> against("better", "SGD"), against("not established", "SGD")
        ('better than SGD', 'undecided against SGD')
    """
    return f"{_LINKS.get(word, 'undecided against')} {peer}"


def numbers(difference: Estimate) -> str:
    """A difference with its interval, as far as there is one."""
    value = "" if difference.value is None else signed(difference.value)
    return value if difference.low is None else f"{value} {interval(difference)}"


def cost_text(arm: Arm, timed: bool) -> str:
    """What a run costs, in float32 SGD runs; "" for an arm without steps.

    Args:
        arm: whose run it is.
        timed: whether the arms beside it have times, so that one without must say so.

    Example:
        "1.15 × SGD's gradients, 1.31 × its time"
    """
    if arm.run_gradients is None:
        return ""
    time = None if arm.run_time is None else arm.run_time.value
    also = f", {time:.2f} {TIMES} its time" if time is not None else ", time not measured" if timed else ""
    return f"{arm.run_gradients:.2f} {TIMES} SGD's gradients{also}"


def cost_sentence(arm: Arm) -> str:
    """The same in a sentence."""
    if arm.run_gradients is None:
        return ""
    time = None if arm.run_time is None else arm.run_time.value
    also = "" if time is None else f" and {time:.2f} times its time"
    return f"It costs {arm.run_gradients:.2f} times float32 SGD's gradients{also}."


def terms(arms: Sequence[Arm]) -> str:
    """The terms that occur with some arms, spelled out.

    Example:
        "W4A4: weights and activations of 4 bits. SAM (sharpness-aware minimization): each step needs 2 gradients.
        VSAM: 1.15 gradients. Cost: 1 = one float32 SGD run."
    """
    told = [
        f"{precision_label(precision)}: {bits}"
        for precision in dict.fromkeys(arm.precision for arm in arms)
        if precision != FLOAT and (bits := _bits(precision))
    ]
    steps = {arm.method_label: arm for arm in arms if arm.role in ("sam", "vsam") and arm.gradients is not None}
    for place, (label, arm) in enumerate(steps.items()):
        name = f"{label} (sharpness-aware minimization)" if arm.role == "sam" else label
        count = f"{arm.gradients:.2f}".rstrip("0").rstrip(".")
        told.append(f"{name}: {'' if place else 'each step needs '}{count} gradients")
    if any(arm.run_gradients is not None for arm in arms):
        timed = any(arm.run_time is not None for arm in arms)
        told.append("Cost: 1 = one float32 SGD run" + ("" if timed else "; time not measured"))
    return "".join(f"{part}. " for part in told).strip()


def _against_sgd(arm: Arm) -> tuple[str, str] | None:
    """The word against SGD, and its numbers."""
    if arm.to_sgd is None or arm.sgd_word is None:
        return None
    few = arm.to_sgd.n < FEWEST_SEEDS
    # against SAM it is said already
    note = f"{_seeds(arm.to_sgd.n)}: no difference can be established" if few and arm.verdict is None else ""
    told = [numbers(arm.to_sgd), note, _uncertain(arm, arm.sgd_word, arm.to_sgd, arm.p_sgd)]
    return against(arm.sgd_word, "SGD"), "; ".join(part for part in told if part)


def _uncertain_of_sam(arm: Arm) -> str:
    if arm.verdict is None or arm.to_sam is None:
        return ""
    return _uncertain(arm, arm.verdict.word, arm.to_sam, arm.verdict.p_holm, arm.verdict.margin)


def _uncertain(arm: Arm, word: str, difference: Estimate, p_holm: float | None, margin: float | None = None) -> str:
    """What forbids a claim that the interval alone would have made; "" where it makes none."""
    low, high = difference.low, difference.high
    if word not in _OPEN or p_holm is None or low is None or high is None:
        return ""
    inside = margin is not None and -margin < low and high < margin
    if not (inside or difference.above_zero or difference.below_zero):
        return ""
    return f"not certain after correction for all {arm.claims} claims of this page ({p_text(p_holm)})"


def _but(doubt: str) -> str:
    return f", but that is {doubt}" if doubt else ""


def _in_words(difference: Estimate, word: str) -> str:
    """How much is gained or lost, as far as the interval allows, without a sign."""
    value, low, high = difference.value, difference.low, difference.high
    if value is None:
        return difference.note
    possible = " is possible" if word in _OPEN else ""
    if difference.n < FEWEST_SEEDS:
        return f"{_seeds(difference.n)}, by which no difference can be established"
    if low is None or high is None:
        return f"a {'loss' if value < 0 else 'gain'} of {abs(value):.2f} points, {difference.note}"
    if low < 0 < high:
        return f"a loss of up to {-low:.2f} or a gain of up to {high:.2f} points{possible}"
    near, far = sorted((abs(low), abs(high)))
    return f"a {'loss' if value < 0 else 'gain'} of {near:.2f} to {far:.2f} points"


def _bits(precision: str) -> str:
    """A bit width in words.

    Example:
        >>> _bits("w4a4"), _bits("w4a8"), _bits("w8")
        ('weights and activations of 4 bits', 'weights of 4 bits, activations of 8', 'weights alone, of 8 bits')
    """
    found = re.fullmatch(r"w(\d+)(?:a(\d+))?", precision, flags=re.IGNORECASE)
    if found is None:
        return ""
    weights, activations = found.groups()
    if activations is None:
        return f"weights alone, of {weights} bits"
    if weights == activations:
        return f"weights and activations of {weights} bits"
    return f"weights of {weights} bits, activations of {activations}"


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"
