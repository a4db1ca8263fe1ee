"""Each arm is measured against the right peers, and missing peers are said, not invented."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qat_vsam.report import Arm, holm, load_results, share_kept, summarise
from qat_vsam.report.arms import accuracy_by_seed


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


def test_p_values_are_corrected_within_sams_own_gains_and_within_all_other_arms(comparison: Path) -> None:
    arms = [arm for arm in arms_of(comparison).values() if arm.to_sgd is not None]
    families = [[arm for arm in arms if (arm.role == "sam") is own] for own in (True, False)]
    assert [len(family) for family in families] == [2, 4]
    for family in families:
        assert [arm.p_holm for arm in family] == pytest.approx(holm([arm.to_sgd.p_value for arm in family]))


def test_a_share_needs_a_gain_of_sam_that_survives_the_correction(make_run: Callable[..., Path]) -> None:
    # at w4a4 SAM's gain alone has p = 0.03, among two precisions 0.06
    gains = {"float32": (0.3, -0.2, 0.25, -0.1), "w4a4": (0.6, 0.9, 0.3, 1.5)}
    for precision, differences in gains.items():
        for seed, gain in enumerate(differences):
            for method, points in (("sgd", 0.0), ("split_sgd", -0.1 * seed), ("vsam", gain / 2), ("sam", gain)):
                accuracy = {"test": 0.95 + points / 100}
                folder = make_run(precision, method, seed, accuracy=accuracy).parent.parent
    arms = arms_of(folder)
    sam = arms["w4a4-sam"]
    assert sam.to_sgd is not None
    assert sam.to_sgd.above_zero
    assert sam.to_sgd.p_value < 0.05 < sam.p_holm
    for precision in gains:
        for share in (arms[f"{precision}-vsam"].share, arms[f"{precision}-vsam"].share_over_split):
            assert share is not None
            assert (share.value, share.note) == (None, "SAM's gain not established")


def test_the_share_over_the_split_control_takes_the_control_in_the_place_of_sgd(comparison: Path) -> None:
    runs = load_results(comparison).runs
    by_arm = {arm: accuracy_by_seed(rows) for arm, rows in runs.groupby("arm")}
    vsam = arms_of(comparison)["w4a4-vsam"]
    expected = share_kept(by_arm["w4a4-vsam"], by_arm["w4a4-split_sgd"], by_arm["w4a4-sam"])
    assert vsam.share_over_split == expected
    assert expected.value is not None
    assert arms_of(comparison)["float32-vsam"].share_over_split is None


def test_variants_of_sgd_and_sam_are_methods_and_never_references(make_run: Callable[..., Path]) -> None:
    for seed in range(3):
        for method, optimizer in (("sgd", "sgd"), ("sam", "sam")):
            for variant in ("a-{}", "{}-ema", "{}"):
                arm = "w4a4-" + variant.format(method)
                folder = make_run("w4a4", method, seed, arm=arm, optimizer=optimizer).parent.parent
    arms = arms_of(folder)
    assert {name: arm.role for name, arm in arms.items()} == {
        "w4a4-sgd": "sgd",
        "w4a4-sam": "sam",
        "w4a4-a-sgd": "other",
        "w4a4-sgd-ema": "other",
        "w4a4-a-sam": "other",
        "w4a4-sam-ema": "other",
    }


def test_a_role_that_the_comparison_says_goes_before_the_name(make_comparison: Callable[..., Path]) -> None:
    folder = make_comparison(seeds=3, arms=[("w4a4", method) for method in ("sgd", "split_sgd", "sam")])
    (folder / "comparison.yaml").write_text("arms: {w4a4-split_sgd: {role: sgd}, w4a4-sgd: {}, w4a4-sam: {}}\n")
    arms = arms_of(folder)
    assert {name: arm.role for name, arm in arms.items()} == {
        "w4a4-split_sgd": "sgd",
        "w4a4-sgd": "other",
        "w4a4-sam": "sam",
    }
    assert arms["w4a4-split_sgd"].to_sgd is None


def test_an_arm_of_twice_the_epochs_costs_twice_the_run(make_run: Callable[..., Path]) -> None:
    for seed in range(2):
        make_run("w4a4", "sgd", seed)
        double = {"steps": 1080, "gradient_evaluations": 1080.0, "train_seconds": 4.2}
        folder = make_run("w4a4", "sgd", seed, arm="w4a4-sgd-double", cost=double).parent.parent
    arm = arms_of(folder)["w4a4-sgd-double"]
    assert (arm.cost, arm.run_cost) == (1.0, 2.0)
    assert arm.time_ratio == pytest.approx(1.0, rel=0.1)
    assert arm.run_time == pytest.approx(2.0, rel=0.1)


def test_time_comes_from_the_bench_and_else_from_training_and_says_which(
    comparison: Path, make_comparison: Callable[..., Path]
) -> None:
    timed = arms_of(comparison)["w4a4-vsam"]
    assert (timed.time_ratio, timed.time_source) == (1.36, "bench")
    untimed = arms_of(make_comparison(seeds=3, bench=False, arms=[("w4a4", "sgd"), ("w4a4", "vsam")]))["w4a4-vsam"]
    assert untimed.time_source == "training"
    assert untimed.time_ratio == pytest.approx(1.36, rel=0.1)


def test_times_of_training_are_compared_within_a_seed(make_run: Callable[..., Path]) -> None:
    # the machine is slow from seed 1 on, and one run waited
    for seed, (sgd, sam) in enumerate([(1.0, 2.0), (4.0, 8.0), (4.0, 80.0)]):
        make_run("w4a4", "sgd", seed, cost={"steps": 540, "gradient_evaluations": 540.0, "train_seconds": sgd})
        more = {"steps": 540, "gradient_evaluations": 1080.0, "train_seconds": sam}
        folder = make_run("w4a4", "sam", seed, cost=more).parent.parent
    assert arms_of(folder)["w4a4-sam"].time_ratio == 2.0


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
