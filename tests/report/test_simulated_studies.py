"""Studies whose truth is known, made up by the thousand: how often the verdicts are wrong, and what the intervals hold.

A study is SGD, SAM and arms of one precision, measured with the same seeds: what a seed does to all arms alike is most
of the spread. A verdict is wrong where it says "better" of an arm that is not above SAM, "worse" of one that is not
below, or "equivalent" of one that is the margin or more away. "undecided" is never wrong; whether it is said too often
is looked at as well, for it would make the first promise cheap.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from qat_vsam.report import paired_difference, share_kept
from qat_vsam.report.verdicts import SHARE_OF_GAIN, Judgement, Scores, judge

GAIN = 1.0
MARGIN = SHARE_OF_GAIN * GAIN
# points: what a seed does to all arms, and to each of its own
SHARED, OWN = 0.5, 0.12
# SAM - SGD and arm - SAM
TRUTHS = {
    "as SAM": (GAIN, 0.0),
    "a margin below SAM": (GAIN, -MARGIN),
    "a margin above SAM": (GAIN, MARGIN),
    "as SGD": (GAIN, -GAIN),
    "SAM gains nothing": (0.0, 0.0),
}


@dataclass(frozen=True)
class Study:
    """One made-up study and what the functions of the report say of it."""

    scores: list[Scores]
    judgement: Judgement

    def __getitem__(self, name: str) -> dict[int, float]:
        return dict(next(arm.accuracy for arm in self.scores if arm.name == name))


def studies(
    gain: float, distance: float, seeds: int, repeats: int, arms: int = 1, own: float = OWN, margin: float | None = None
) -> Iterator[Study]:
    """Made-up studies with SGD, SAM and arms at `distance` from SAM; the same every time."""
    draw = np.random.default_rng([seeds, repeats, arms, round(1000 * (gain + 10)), round(1000 * (distance + 10))])
    names = ["sgd", "sam", *(f"arm-{number}" for number in range(arms))]
    shifts = np.array([0.0, gain, *[gain + distance] * arms])
    for _ in range(repeats):
        table = 90 + draw.normal(0, SHARED, (seeds, 1)) + shifts + draw.normal(0, own, (seeds, len(names)))
        columns = [dict(enumerate(column)) for column in table.T.tolist()]
        roles = [name if name in ("sgd", "sam") else "vsam" for name in names]
        scores = [Scores(n, "W4A4", role, values) for n, role, values in zip(names, roles, columns, strict=True)]
        yield Study(scores, judge(scores, margin))


def is_wrong(word: str, distance: float, margin: float) -> bool:
    return {
        "better": distance <= 0,
        "worse": distance >= 0,
        "equivalent": abs(distance) >= margin - 1e-9,
        "undecided": False,
    }[word]


def share_of(claims: list[bool]) -> float:
    return sum(claims) / len(claims)


@pytest.mark.parametrize("seeds", [6, 8, 12])
@pytest.mark.parametrize("truth", TRUTHS)
@pytest.mark.parametrize("declared", [None, MARGIN], ids=["a fifth of the gain", "declared"])
def test_a_verdict_is_wrong_in_at_most_one_study_of_twenty(truth: str, seeds: int, declared: float | None) -> None:
    gain, distance = TRUTHS[truth]
    margin = SHARE_OF_GAIN * gain if declared is None else declared
    found = studies(gain, distance, seeds, 1000, margin=declared)
    words = [study.judgement.verdicts["arm-0"].word for study in found]
    assert share_of([is_wrong(word, distance, margin) for word in words]) <= 0.05


@pytest.mark.parametrize("truth", TRUTHS)
def test_the_intervals_hold_the_truth_nineteen_times_of_twenty(truth: str) -> None:
    gain, distance = TRUTHS[truth]
    held: dict[str, list[bool]] = {"difference": [], "gain": [], "share": []}
    for seeds in (6, 8, 12):
        for study in studies(gain, distance, seeds, 1000):
            difference = paired_difference(study["arm-0"], study["sam"])
            gained = paired_difference(study["sam"], study["sgd"])
            held["difference"].append(difference.low <= distance <= difference.high)
            held["gain"].append(gained.low <= gain <= gained.high)
            share = share_kept(study["arm-0"], study["sgd"], study["sam"])
            # where SAM gains nothing there is no true share
            if gain and share.value is not None:
                held["share"].append(share.low <= 1 + distance / gain <= share.high)
    for name, claims in held.items():
        if claims:
            assert 0.93 <= share_of(claims) <= 0.97, (name, share_of(claims))


@pytest.mark.parametrize(
    ("truth", "seeds", "word"),
    [("as SAM", 12, "equivalent"), ("as SGD", 8, "worse"), ("a margin above SAM", 12, "better")],
)
def test_what_is_so_is_mostly_found(truth: str, seeds: int, word: str) -> None:
    own = {"better": 0.05, "equivalent": 0.1, "worse": OWN}[word]
    words = [study.judgement.verdicts["arm-0"].word for study in studies(*TRUTHS[truth], seeds, 300, own=own)]
    assert words.count(word) > 0.8 * len(words), {word: words.count(word) for word in set(words)}


def false_claims(study: Study, gain: float, distance: float) -> bool:
    """Whether anything on the page is wrong: a word against SAM, a word against SGD, or a gain of SAM."""
    judgement = study.judgement
    against_sam = any(
        is_wrong(verdict.word, distance if name != "sgd" else -gain, SHARE_OF_GAIN * gain)
        for name, verdict in judgement.verdicts.items()
    )
    to_sgd = {name: gain if name == "sam" else gain + distance for name in judgement.sgd_words}
    against_sgd = any(
        (word == "better" and to_sgd[name] <= 1e-9) or (word == "worse" and to_sgd[name] >= -1e-9)
        for name, word in judgement.sgd_words.items()
    )
    return against_sam or against_sgd or (gain <= 0 and bool(judgement.gains))


# the margin in units of an arm's own spread: where it is wide, equivalences are found first, and what is left of the
# page must not be judged the more mildly for it
PAGES = [("as SAM", 8, 0.12), ("as SAM", 12, 0.06), ("SAM gains nothing", 8, 0.12), ("a margin below SAM", 8, 0.06)]


@pytest.mark.parametrize(("truth", "seeds", "own"), PAGES)
def test_a_page_of_twenty_arms_has_a_false_claim_in_at_most_one_study_of_twenty(
    truth: str, seeds: int, own: float
) -> None:
    gain, distance = TRUTHS[truth]
    pages = studies(gain, distance, seeds, 1000, arms=20, own=own)
    assert share_of([false_claims(page, gain, distance) for page in pages]) <= 0.05


@pytest.mark.nightly
@pytest.mark.parametrize("seeds", [6, 8, 12])
@pytest.mark.parametrize("truth", TRUTHS)
@pytest.mark.parametrize("own", [0.04, 0.06, 0.08, 0.12, 0.25])
def test_a_thousand_pages_of_twenty_arms(truth: str, seeds: int, own: float) -> None:
    gain, distance = TRUTHS[truth]
    pages = studies(gain, distance, seeds, 1000, arms=20, own=own)
    # 1,000 pages at 5 % have 50 false ones, give or take 7
    assert share_of([false_claims(page, gain, distance) for page in pages]) <= 0.064
