"""Intervals, shares and corrections agree with other computations, and claim only what was measured."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from qat_vsam.report import holm, mean_interval, paired_difference, pareto_front, share_kept


def by_seed(values: np.ndarray) -> dict[int, float]:
    return {seed: float(value) for seed, value in enumerate(values)}


def test_the_paired_difference_is_the_paired_t_test_of_scipy() -> None:
    draw = np.random.default_rng(0)
    a, b = draw.normal(97, 0.4, 12), draw.normal(96, 0.4, 12)
    ours = paired_difference(by_seed(a), by_seed(b))
    theirs = stats.ttest_rel(a, b)
    low, high = theirs.confidence_interval(0.95)
    assert [ours.value, ours.low, ours.high, ours.p_value] == pytest.approx(
        [float(np.mean(a - b)), low, high, theirs.pvalue], rel=1e-9
    )


def test_a_difference_uses_only_the_seeds_that_both_arms_have() -> None:
    difference = paired_difference({0: 1.0, 2: 5.0, 3: 7.5}, {0: 0.0, 1: 100.0, 2: 2.0, 3: 5.5})
    assert (difference.value, difference.n) == (2.0, 3)


@pytest.mark.parametrize(
    ("values", "note"), [([97.0], "one seed"), ([97.0] * 5, "the same for every seed"), ([], "no seed")]
)
def test_without_spread_there_is_no_interval_and_a_reason(values: list[float], note: str) -> None:
    estimate = mean_interval(values)
    assert (estimate.low, estimate.high, estimate.p_value, estimate.note) == (None, None, None, note)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(4, 20))
def test_the_share_interval_holds_the_ratios_that_a_t_test_does_not_reject(seed: int, n: int) -> None:
    draw = np.random.default_rng(seed)
    sgd = draw.normal(95, 0.3, n)
    gain = draw.normal(1.0, 0.2, n)
    kept = 0.8 * gain + draw.normal(0, 0.15, n)
    share = share_kept(by_seed(sgd + kept), by_seed(sgd), by_seed(sgd + gain))
    if share.value is None or share.low is None or share.high is None:
        assert stats.ttest_1samp(gain, 0).confidence_interval(0.95).low <= 0
        return
    for ratio in (share.low, share.high):
        assert stats.ttest_1samp(kept - ratio * gain, 0).pvalue == pytest.approx(0.05, abs=1e-6)
    assert share.low < share.value < share.high


@pytest.mark.parametrize("gain", [0.0, -1.0])
def test_no_share_is_given_where_sam_did_not_gain(gain: float) -> None:
    draw = np.random.default_rng(1)
    sgd = draw.normal(95, 0.3, 8)
    sam = sgd + gain + draw.normal(0, 0.2, 8)
    share = share_kept(by_seed(sgd + 0.1), by_seed(sgd), by_seed(sam))
    assert share.value is None
    assert share.note == "SAM's gain not established"


def test_holm_is_the_worked_example_and_keeps_the_order_given() -> None:
    # m = 4: 4 x 0.005, 3 x 0.011, then 2 x 0.02 and 1 x 0.04 raised to the largest before them
    assert holm([0.02, 0.005, 0.04, 0.011]) == pytest.approx([0.04, 0.02, 0.04, 0.033])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_pareto_front_leaves_out_what_is_beaten_and_what_is_only_equal() -> None:
    points = [(1.0, 95.0), (1.0, 96.0), (1.2, 96.0), (2.0, 97.0), (1.5, 96.5)]
    assert pareto_front(points) == [1, 4, 3]
