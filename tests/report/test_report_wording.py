"""Words of a verdict say no more than the test, and do not contradict the interval beside them; terms are spelled."""

from __future__ import annotations

from dataclasses import replace

import pytest
from report.studies import CLAIMS, make_study

from qat_vsam.report.arm import Arm, Verdict
from qat_vsam.report.formats import MINUS, TIMES
from qat_vsam.report.statistics import Estimate
from qat_vsam.report.wording import cost_text, terms, verdict_sentences, verdict_words

DOUBT = f"not certain after correction for all {CLAIMS} claims of this page"


def arm_of(role: str, **changes: object) -> Arm:
    """The W4A4 arm of a role, with some of its fields replaced."""
    found = next(arm for arm in make_study().arms if (arm.group, arm.role) == ("W4A4", role))
    return replace(found, **changes)


def judged(to_sam: Estimate, word: str, p: float | None, margin: float | None = 0.23, note: str = "") -> Arm:
    """A VSAM with a difference to SAM and a word about it, surely better than SGD."""
    over_sgd = Estimate(1.19, 0.97, 1.41, 30)
    verdict = Verdict(word, margin, p, note)
    return arm_of("vsam", to_sam=to_sam, verdict=verdict, to_sgd=over_sgd, sgd_word="better", p_sgd=0.001)


def test_sgd_is_the_baseline_and_not_a_mirrored_verdict() -> None:
    assert verdict_words(arm_of("sgd")) == ("baseline", ())
    assert verdict_sentences(arm_of("sgd")) == ""


def test_sam_is_told_against_sgd() -> None:
    word, details = verdict_words(arm_of("sam", to_sgd=Estimate(1.14, 0.95, 1.34, 30), sgd_word="better"))
    assert (word, details) == ("better than SGD", ("+1.14 [+0.95, +1.34]",))


@pytest.mark.parametrize(
    ("to_sam", "word", "p", "lines", "sentence"),
    [
        (
            Estimate(0.04, -0.14, 0.22, 30),
            "undecided",
            0.41,
            f"+0.04 [{MINUS}0.14, +0.22]; counts as equal within ±0.23; {DOUBT} (p = 0.410)",
            "VSAM is undecided against SAM: a loss of up to 0.14 or a gain of up to 0.22 points is possible; within "
            f"0.23 points it would count as equal, but that is {DOUBT} (p = 0.410).",
        ),
        (
            Estimate(-0.50, -0.95, -0.05, 30),
            "undecided",
            0.336,
            f"{MINUS}0.50 [{MINUS}0.95, {MINUS}0.05]; counts as equal within ±0.23; {DOUBT} (p = 0.336)",
            f"VSAM is undecided against SAM: a loss of 0.05 to 0.95 points, but that is {DOUBT} (p = 0.336); "
            "within 0.23 points it would count as equal.",
        ),
        (
            Estimate(0.1, -0.4, 0.6, 30),
            "undecided",
            0.9,
            f"+0.10 [{MINUS}0.40, +0.60]; counts as equal within ±0.23",
            "VSAM is undecided against SAM: a loss of up to 0.40 or a gain of up to 0.60 points is possible; within "
            "0.23 points it would count as equal.",
        ),
        (
            Estimate(0.04, -0.14, 0.22, 30),
            "equivalent",
            0.001,
            f"+0.04 [{MINUS}0.14, +0.22]; counts as equal within ±0.23",
            "VSAM is equivalent to SAM: a loss of up to 0.14 or a gain of up to 0.22 points; within 0.23 points it "
            "counts as equal.",
        ),
        (
            Estimate(0.6, 0.4, 0.8, 30),
            "better",
            0.001,
            "+0.60 [+0.40, +0.80]; counts as equal within ±0.23",
            "VSAM is better than SAM: a gain of 0.40 to 0.80 points; within 0.23 points it would count as equal.",
        ),
    ],
    ids=("inside the margin", "beyond zero", "open", "equivalent", "better"),
)
def test_a_verdict_shows_its_numbers_the_margin_what_forbids_more_and_the_word_against_sgd(
    to_sam: Estimate, word: str, p: float, lines: str, sentence: str
) -> None:
    arm = judged(to_sam, word, p)
    told, details = verdict_words(arm)
    assert told.split()[0] == word
    assert details == (lines, "better than SGD: +1.19 [+0.97, +1.41]")
    assert verdict_sentences(arm) == f"{sentence} It is better than SGD: a gain of 0.97 to 1.41 points."


def test_without_a_margin_the_row_says_what_it_would_follow_from() -> None:
    arm = judged(Estimate(0.1, -0.4, 0.6, 5), "undecided", 0.9, None, "what counts as equal follows from SAM's gain")
    assert verdict_words(arm)[1][0] == f"+0.10 [{MINUS}0.40, +0.60]; what counts as equal follows from SAM's gain"


def test_a_difference_to_sgd_that_only_its_interval_establishes_is_doubted() -> None:
    arm = arm_of("sam", to_sgd=Estimate(0.3, 0.1, 0.5, 5), sgd_word="not established", p_sgd=0.2)
    assert verdict_words(arm) == ("undecided against SGD", (f"+0.30 [+0.10, +0.50]; {DOUBT} (p = 0.200)",))
    assert verdict_sentences(arm).endswith(f": a gain of 0.10 to 0.50 points, but that is {DOUBT} (p = 0.200).")


def test_one_seed_shows_its_difference_and_why_it_decides_nothing() -> None:
    arm = next(arm for arm in make_study(seeds=1).arms if (arm.group, arm.role) == ("W4A4", "vsam"))
    word, (first, second) = verdict_words(arm)
    assert word == "undecided against SAM"
    assert first.endswith("; 1 seed: no difference can be established")
    assert second.startswith("undecided against SGD: +")


@pytest.mark.parametrize(
    ("precision", "words"),
    [
        ("w4a4", "W4A4: weights and activations of 4 bits."),
        ("w4a8", "W4A8: weights of 4 bits, activations of 8."),
        ("w8", "W8: weights alone, of 8 bits."),
        ("float32", ""),
    ],
)
def test_bits_are_spelled_out_where_they_occur(precision: str, words: str) -> None:
    assert terms([arm_of("other", precision=precision, run_gradients=None)]) == words


def test_only_the_terms_that_occur_are_spelled_out_with_the_numbers_of_the_arms() -> None:
    study = make_study(precisions=("float32", "w4a4"))
    assert study.terms == (
        "W4A4: weights and activations of 4 bits. SAM (sharpness-aware minimization): each step needs 2 gradients. "
        "VSAM: 1.15 gradients. Cost: 1 = one float32 SGD run."
    )
    assert terms([arm_of("vsam", precision="float32", gradients=1.5)]) == (
        "VSAM: each step needs 1.5 gradients. Cost: 1 = one float32 SGD run."
    )


def test_a_study_without_a_bench_says_so_once() -> None:
    study = make_study(bench=False)
    assert study.terms.endswith("Cost: 1 = one float32 SGD run; time not measured.")
    assert [row.cost for row in study.answer][-1] == f"1.15 {TIMES} SGD's gradients"
    assert cost_text(study.answer[-1].arm, timed=True) == f"1.15 {TIMES} SGD's gradients, time not measured"
