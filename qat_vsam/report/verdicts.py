r"""One word for each arm against SAM and one against SGD, and how sure all words of a page are together.

Of the paired accuracies of one precision let \(d = arm - SAM\) and \(g = SAM - SGD\), seed by seed.

* **better**, **worse**: the two-sided paired t test of \(E d = 0\).
* **equivalent**: \(|E d|\) is below a margin. A declared margin m asks for \(E (d + m) > 0\) and \(E (m - d) > 0\).
  Where none is declared it is a fifth of SAM's gain. That is not known but measured, so the linear contrasts
  \(E (d + f g) > 0\) and \(E (-d + f g) > 0\) with \(f = 1/5\) are tested, which is exact. Both must hold, each by a
  one-sided t test at 2.5 %: with a declared margin just where the whole 95 % interval of d lies inside it. The p-value
  is twice the larger of the two. The fifth needs a gain of SAM that is itself established.
* **undecided**: neither. An arm that is equivalent is not called better or worse as well.

All claims of a page are one family: for each arm these two hypotheses about its distance to SAM, its difference to SGD,
SAM's gain at each precision, and SAM's gain over the split control. Holm's correction covers them together at 5 %; that
an arm is SAM's equal and that it is a margin away are one question, for not both can be true (see `statistics.holm`).
With fewer than three seeds nothing is claimed, for a t interval of two seeds reaches nine times as far as one of ten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qat_vsam.report.arm import Verdict
from qat_vsam.report.statistics import (
    CONFIDENCE,
    Estimate,
    holm,
    mean_interval,
    p_above_zero,
    paired_difference,
)

SHARE_OF_GAIN = 0.2
FEWEST_SEEDS = 3
NO_MARGIN = "what counts as equal follows from SAM's gain, which is not established here"
NO_SGD = "what counts as equal follows from SAM's gain, and there is no SGD of the same bits"
REFERENCES = ("sgd", "sam", "split_sgd")

BySeed = Mapping[int, float]
Claim = tuple[str, str]


@dataclass(frozen=True)
class Scores:
    """What a verdict rests on: a trained arm, its place in the comparison, and its accuracy in % by seed."""

    name: str
    group: str
    role: str
    accuracy: BySeed


@dataclass(frozen=True)
class Judgement:
    """All that may be claimed on a page.

    Attributes:
        verdicts: arm -> its verdict against SAM; arms without a SAM of their precision have none.
        p_sgd: arm -> corrected p-value of its difference to SGD.
        sgd_words: arm -> "better", "worse" or "not established" against SGD.
        gains: the groups in which SAM's gain over SGD is established.
        split_gains: those of them in which it is over the split control too.
        claims: how many hypotheses the correction covers.
    """

    verdicts: dict[str, Verdict]
    p_sgd: dict[str, float]
    sgd_words: dict[str, str]
    gains: frozenset[str]
    split_gains: frozenset[str]
    claims: int


def judge(arms: Sequence[Scores], margin: float | None = None) -> Judgement:
    """Test all that a page claims, as one family.

    Args:
        arms: the trained arms; of each group the first with the role "sgd", "sam" or "split_sgd" is its reference.
        margin: in points; None: a fifth of SAM's gain over SGD.

    Example:
        >>> sgd, sam, arm = {}, {}, {}
        >>> for seed in range(8):
        ...     sgd[seed] = 95.0 + 0.1 * (seed % 3)
        ...     sam[seed] = sgd[seed] + 1.0 + 0.05 * (seed % 2)
        ...     arm[seed] = sam[seed] + 0.03 * (seed % 4 - 1.5)
        >>> judge([Scores("a", "W4A4", "sgd", sgd), Scores("b", "W4A4", "sam", sam),
        ...        Scores("c", "W4A4", "vsam", arm)]).verdicts["c"].word
        'equivalent'
    """
    peers = {key: found for key in _keys(arms) if (found := _first(arms, *key)) is not None}
    tests: dict[Claim, Estimate] = {}
    questions: dict[Claim, str] = {}

    def test(claim: Claim, estimate: Estimate, question: str) -> None:
        tests[claim] = estimate
        if estimate.n >= FEWEST_SEEDS and estimate.p_value is not None:
            questions[claim] = question

    for arm in arms:
        sgd, sam, split = (peers.get((arm.group, role)) for role in REFERENCES)
        if sgd is not None and arm is not sgd:
            test(("sgd", arm.name), paired_difference(arm.accuracy, sgd.accuracy), f"sgd {arm.name}")
        if arm is sam and split is not None:
            test(("split", arm.name), paired_difference(arm.accuracy, split.accuracy), f"split {arm.name}")
        if sam is not None and arm is not sam:
            # how far SGD is from SAM is asked once: as SAM's gain
            question = f"sgd {sam.name}" if arm is sgd else f"sam {arm.name}"
            if arm is not sgd:
                test(("sam", arm.name), paired_difference(arm.accuracy, sam.accuracy), question)
            # a fifth of SAM's gain away from SAM is never SGD itself
            control = None if sgd is None or arm is sgd else sgd.accuracy
            equal = _equivalence(arm.accuracy, sam.accuracy, control, margin)
            if equal is not None:
                test(("equal", arm.name), equal, question)
    p_values = [tests[claim].p_value or 0.0 for claim in questions]
    numbers = {question: number for number, question in enumerate(dict.fromkeys(questions.values()))}
    corrected = dict(zip(questions, holm(p_values, [numbers[q] for q in questions.values()]), strict=True))
    made = _Claims(tests, corrected)
    sams = {arm.group: arm.name for arm in peers.values() if arm.role == "sam"}
    gains = frozenset(group for group, name in sams.items() if made.sign(("sgd", name)) > 0)
    verdicts = {}
    for arm in arms:
        sgd, sam, _ = (peers.get((arm.group, role)) for role in REFERENCES)
        if sam is not None and arm is not sam:
            verdicts[arm.name] = _verdict(arm, sgd, sam, made, arm.group in gains, margin)
    signs = {name: made.sign((kind, name)) for kind, name in tests if kind == "sgd"}
    return Judgement(
        verdicts=verdicts,
        p_sgd={name: p for (kind, name), p in corrected.items() if kind == "sgd"},
        sgd_words={name: _WORDS.get(sign, "not established") for name, sign in signs.items()},
        gains=gains,
        split_gains=frozenset(group for group in gains if made.sign(("split", sams[group])) > 0),
        claims=len(corrected),
    )


_WORDS = {1: "better", -1: "worse"}


@dataclass(frozen=True)
class _Claims:
    """The tests of a page, and their corrected p-values."""

    tests: Mapping[Claim, Estimate]
    corrected: Mapping[Claim, float]

    def sign(self, claim: Claim) -> int:
        """1 or -1 where a difference is established, else 0."""
        value = self.tests[claim].value if claim in self.tests else None
        if value is None or self.corrected.get(claim, 1.0) >= 1 - CONFIDENCE:
            return 0
        return 1 if value > 0 else -1


def _keys(arms: Sequence[Scores]) -> list[tuple[str, str]]:
    return [(group, role) for group in dict.fromkeys(arm.group for arm in arms) for role in REFERENCES]


def _first(arms: Sequence[Scores], group: str, role: str) -> Scores | None:
    return next((arm for arm in arms if arm.group == group and arm.role == role), None)


def _equivalence(arm: BySeed, sam: BySeed, sgd: BySeed | None, margin: float | None) -> Estimate | None:
    """The test that an arm is within the margin, as an estimate of its distance to the nearer end of it."""
    if margin is not None:
        seeds = sorted(arm.keys() & sam.keys())
        room = dict.fromkeys(seeds, margin)
    elif sgd is not None:
        seeds = sorted(arm.keys() & sam.keys() & sgd.keys())
        room = {seed: SHARE_OF_GAIN * (sam[seed] - sgd[seed]) for seed in seeds}
    else:
        return None
    if len(seeds) < FEWEST_SEEDS:
        return None
    ends = [[room[seed] + sign * (arm[seed] - sam[seed]) for seed in seeds] for sign in (1, -1)]
    p_values = [p for p in map(p_above_zero, ends) if p is not None]
    if len(p_values) < len(ends):
        return None
    nearer = mean_interval(min(ends, key=sum)).value
    return Estimate(nearer, n=len(seeds), p_value=min(1.0, 2 * max(p_values)))


def _verdict(
    arm: Scores, sgd: Scores | None, sam: Scores, made: _Claims, gained: bool, declared: float | None
) -> Verdict:
    # SGD's distance to SAM is SAM's gain, the other way round
    claim = ("sgd", sam.name) if arm is sgd else ("sam", arm.name)
    difference, sign = made.tests[claim], made.sign(claim) * (-1 if arm is sgd else 1)
    margin = declared
    if declared is None and gained and sgd is not None:
        gain = paired_difference(sam.accuracy, sgd.accuracy).value
        margin = None if gain is None else SHARE_OF_GAIN * gain
    if difference.n < FEWEST_SEEDS:
        seeds = "1 seed" if difference.n == 1 else f"{difference.n} seeds"
        return Verdict("undecided", margin, None, f"{seeds}: no difference can be established")
    p_difference = made.corrected.get(claim)
    p_equal = None if margin is None else made.corrected.get(("equal", arm.name))
    note = "" if margin is not None else NO_MARGIN if sgd is not None else NO_SGD
    if p_equal is not None and p_equal < 1 - CONFIDENCE:
        return Verdict("equivalent", margin, p_equal, note)
    if sign:
        return Verdict(_WORDS[sign], margin, p_difference, note)
    nearer = min((p for p in (p_difference, p_equal) if p is not None), default=None)
    return Verdict("undecided", margin, nearer, note or difference.note)
