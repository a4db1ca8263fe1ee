"""The word of an arm is what the tests allow: no word without seeds, without a margin, or against the correction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from qat_vsam.report import Arm, Scores, holm, judge, load_results, paired_difference, summarise

BASE = 95 + np.random.default_rng(3).normal(0, 0.4, 12)
MINUS = "\N{MINUS SIGN}"


def noise(seed: int, spread: float = 0.05, n: int = 12) -> np.ndarray:
    """Spread around a mean of exactly zero."""
    values = np.random.default_rng(seed).normal(0, spread, n)
    return values - values.mean()


def scores(name: str, values: np.ndarray, role: str = "other", group: str = "W4A4") -> Scores:
    return Scores(name, group, role, dict(enumerate(values.tolist())))


def page(gain: float, distances: Mapping[str, float], n: int = 12, spread: float = 0.05) -> list[Scores]:
    """SGD, SAM, and arms at exact mean distances from SAM."""
    sgd = BASE[:n] + noise(1, spread, n)
    sam = BASE[:n] + gain + noise(2, spread, n)
    arms = [
        scores(name, BASE[:n] + gain + far + noise(10 + i, spread, n))
        for i, (name, far) in enumerate(distances.items())
    ]
    return [scores("sgd", sgd, "sgd"), scores("sam", sam, "sam"), *arms]


def test_each_word_is_given_where_it_is_so() -> None:
    distances = {"same": 0.02, "above": 0.6, "below": -0.6, "at the margin": -0.2}
    judged = judge(page(1.0, distances))
    words = {name: verdict.word for name, verdict in judged.verdicts.items()}
    # the arm at the margin is surely below SAM, and not surely within the margin
    expected = {"same": "equivalent", "above": "better", "below": "worse", "at the margin": "worse", "sgd": "worse"}
    assert words == expected
    assert judged.verdicts["same"].margin == pytest.approx(0.2)
    assert judged.gains == {"W4A4"}
    assert judged.sgd_words == dict.fromkeys(("sam", *distances), "better")


def test_equivalence_to_a_declared_margin_is_the_whole_interval_inside_it() -> None:
    _, sam, arm = page(1.0, {"arm": 0.03})
    difference = paired_difference(arm.accuracy, sam.accuracy)
    reach = max(abs(difference.low), abs(difference.high))
    for margin, word in ((reach * 1.001, "equivalent"), (reach * 0.999, "undecided"), (reach * 9, "equivalent")):
        assert judge([sam, arm], margin).verdicts["arm"].word == word, margin


def test_the_margin_of_a_fifth_is_tested_as_a_contrast_and_not_as_a_known_number() -> None:
    arms = page(1.0, {"arm": 0.03}, n=8, spread=0.1)
    sgd, sam, arm = (np.array(list(a.accuracy.values())) for a in arms)
    contrasts = [(arm - sam) + 0.2 * (sam - sgd), (sam - arm) + 0.2 * (sam - sgd)]
    p_equal = 2 * max(stats.ttest_1samp(c, 0, alternative="greater").pvalue for c in contrasts)
    p_values = [
        stats.ttest_rel(sam, sgd).pvalue,
        stats.ttest_rel(arm, sgd).pvalue,
        stats.ttest_rel(arm, sam).pvalue,
        p_equal,
    ]
    found = judge(arms).verdicts["arm"]
    assert found.word == "equivalent"
    assert found.p_holm == pytest.approx(holm(p_values, questions=[0, 1, 2, 2])[3], rel=1e-9)


def test_without_a_gain_of_sam_there_is_no_margin_and_nothing_is_equivalent() -> None:
    judged = judge(page(0.0, {"same": 0.0, "above": 0.6}))
    assert judged.gains == frozenset()
    same, above = judged.verdicts["same"], judged.verdicts["above"]
    assert (same.word, same.margin) == ("undecided", None)
    assert same.note == "what counts as equal follows from SAM's gain, which is not established here"
    assert (above.word, above.margin) == ("better", None)
    # a declared margin needs no gain
    assert judge(page(0.0, {"same": 0.0}), margin=0.3).verdicts["same"].word == "equivalent"


def test_two_seeds_establish_nothing() -> None:
    judged = judge(page(5.0, {"arm": -4.0}, n=2, spread=0.001))
    assert judged.claims == 0
    assert judged.verdicts["arm"].word == "undecided"
    assert judged.verdicts["arm"].note == "2 seeds: no difference can be established"
    assert judged.sgd_words == {"sam": "not established", "arm": "not established"}
    assert judged.gains == frozenset()


def test_a_difference_that_stands_alone_falls_among_many() -> None:
    far = 0.06
    alone = judge(page(0.0, {"arm": far}, spread=0.05)).verdicts["arm"]
    among = judge(page(0.0, {"arm": far, **{f"other-{i}": 0.0 for i in range(40)}}, spread=0.05)).verdicts["arm"]
    assert alone.word == "better"
    assert among.word == "undecided"
    assert among.p_holm > 0.05 > alone.p_holm


def test_sam_over_the_split_control_is_a_claim_of_its_own() -> None:
    arms = page(1.0, {})
    split = scores("split", BASE + 1.0 + noise(7), "split_sgd")
    assert judge(arms).split_gains == frozenset()
    judged = judge([*arms, split])
    assert judged.gains == {"W4A4"}
    assert judged.split_gains == frozenset()
    assert judge([*arms, scores("split", BASE + 0.2 + noise(7), "split_sgd")]).split_gains == {"W4A4"}


def test_holm_counts_a_question_until_all_of_its_hypotheses_are_rejected() -> None:
    assert holm([0.01, 0.02, 0.03, 0.04], questions=[0, 0, 1, 2]) == pytest.approx([0.03, 0.06, 0.06, 0.06])


def arms_of(folder: Path, margin: float | None = None) -> dict[str, Arm]:
    return {arm.name: arm for arm in summarise(load_results(folder), margin)}


def test_the_rows_of_a_study_carry_the_words(make_run: Callable[..., Path]) -> None:
    draw = np.random.default_rng(0)
    for seed in range(10):
        base = 90 + draw.normal(0, 0.3)
        for method, points in (("sgd", 0.0), ("vsam", 1.01), ("sam", 1.0)):
            accuracy = {"test": (base + points + draw.normal(0, 0.04)) / 100}
            folder = make_run("w4a4", method, seed, accuracy=accuracy).parent.parent
    arms = arms_of(folder)
    assert arms["w4a4-vsam"].verdict.word == "equivalent"
    assert arms["w4a4-sam"].verdict is None
    assert arms["w4a4-sam"].sgd_word == "better"
    assert arms["w4a4-sgd"].verdict.word == "worse"
    assert arms["w4a4-sgd"].sgd_word is None
    assert arms_of(folder, margin=0.0001)["w4a4-vsam"].verdict.margin == 0.0001
    best = {name for name, arm in arms.items() if arm.best}
    assert best == {max(arms, key=lambda name: arms[name].accuracy.value)}
