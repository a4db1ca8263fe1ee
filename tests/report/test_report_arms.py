"""Each arm is measured against the right peers, and missing peers are said, not invented."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qat_vsam.report import Arm, holm, load_results, summarise


def arms_of(folder: Path) -> dict[str, Arm]:
    return {arm.name: arm for arm in summarise(load_results(folder))}


def test_rows_run_from_float_to_quantized_and_from_untrained_to_sam(comparison: Path) -> None:
    assert [arm.name for arm in summarise(load_results(comparison))] == [
        "float32-sgd",
        "float32-vsam",
        "float32-sam",
        "w4a4-post_training",
        "w4a4-sgd",
        "w4a4-split_sgd",
        "w4a4-vsam-variance",
        "w4a4-vsam",
        "w4a4-sam",
    ]


def test_differences_are_taken_to_the_peer_of_the_same_bits(comparison: Path) -> None:
    results = load_results(comparison)
    arms = arms_of(comparison)
    means = {arm: 100 * rows["test_accuracy"].mean() for arm, rows in results.runs.groupby("arm")}
    vsam = arms["w4a4-vsam"]
    for difference, peer in (
        (vsam.to_sgd, "w4a4-sgd"),
        (vsam.to_sam, "w4a4-sam"),
        (vsam.to_split, "w4a4-split_sgd"),
        (vsam.to_float_sam, "float32-sam"),
    ):
        assert difference is not None
        assert difference.value == pytest.approx(means["w4a4-vsam"] - means[peer])
        assert difference.n == 8
    gain = means["w4a4-sam"] - means["w4a4-sgd"]
    assert vsam.share is not None
    assert vsam.share.value == pytest.approx((means["w4a4-vsam"] - means["w4a4-sgd"]) / gain)


def test_no_arm_is_compared_with_itself(comparison: Path) -> None:
    arms = arms_of(comparison)
    assert arms["w4a4-sam"].to_sam is None
    assert arms["float32-sam"].to_float_sam is None
    assert arms["w4a4-sgd"].to_sgd is None
    assert arms["w4a4-split_sgd"].to_split is None


def test_p_values_are_corrected_over_all_arms_with_a_difference_to_sgd(comparison: Path) -> None:
    arms = [arm for arm in arms_of(comparison).values() if arm.to_sgd is not None]
    assert len(arms) == 6
    assert [arm.p_holm for arm in arms] == pytest.approx(holm([arm.to_sgd.p_value for arm in arms]))


def test_time_comes_from_the_bench_and_else_from_training_and_says_which(
    comparison: Path, make_comparison: Callable[..., Path]
) -> None:
    timed = arms_of(comparison)["w4a4-vsam"]
    assert (timed.time_ratio, timed.time_source) == (1.36, "bench")
    untimed = arms_of(make_comparison(seeds=3, bench=False, arms=[("w4a4", "sgd"), ("w4a4", "vsam")]))["w4a4-vsam"]
    assert untimed.time_source == "training"
    assert untimed.time_ratio == pytest.approx(1.36, rel=0.1)


def test_without_sam_the_share_is_missing_with_its_reason(make_comparison: Callable[..., Path]) -> None:
    arms = arms_of(make_comparison(seeds=2, arms=[("w4a4", "sgd"), ("w4a4", "vsam")]))
    vsam = arms["w4a4-vsam"]
    assert vsam.to_sam is None
    assert vsam.share is not None
    assert (vsam.share.value, vsam.share.note) == (None, "no SAM of the same bits")


def test_the_nets_before_training_get_rows_from_what_trained_runs_noted(
    make_run: Callable[..., Path],
) -> None:
    accuracy = {"float_before": 0.9173, "calibrated": 0.85}
    folder = make_run("w4a4", "sgd", 0, accuracy=accuracy).parent.parent
    arms = arms_of(folder)
    assert arms["float32-float-before"].accuracy.value == pytest.approx(91.73)
    assert arms["w4a4-post-training"].accuracy.value == pytest.approx(85.0)
    assert arms["w4a4-post-training"].role == "post_training"


def test_two_targets_of_one_bit_width_are_two_groups(make_run: Callable[..., Path]) -> None:
    make_run("w4a4", "sgd", 0)
    folder = make_run("w4a4", "sam", 0, target="onnxruntime", arm="w4a4-ort-sam").parent.parent
    arms = arms_of(folder)
    assert {arm.group for arm in arms.values()} == {"W4A4 (simulated)", "W4A4 (onnxruntime)"}
    assert arms["w4a4-ort-sam"].to_sgd is None


def test_a_failed_proof_is_carried_to_the_row(make_run: Callable[..., Path]) -> None:
    export = {
        "format": "packed",
        "bytes": 10,
        "proof": {"passed": False, "argmax_agreement": 0.5, "worst_layer": "conv2"},
    }
    arm = arms_of(make_run("w4a4", "sgd", 0, exports=[export]))["w4a4-sgd"]
    assert (arm.exports[0].passed, arm.exports[0].worst_layer) == (False, "conv2")
