"""Each arm is measured against the right peers, and missing peers are said, not invented."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qat_vsam.errors import InputError
from qat_vsam.report import Arm, load_results, ratio_of_gains, share_kept, summarise
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


def test_a_share_needs_a_gain_of_sam_that_survives_the_correction(make_run: Callable[..., Path]) -> None:
    # at w4a4 SAM's gain alone has p = 0.03, among all claims more
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
    assert sam.to_sgd.p_value < 0.05 < sam.p_sgd
    assert sam.sgd_word == "not established"
    for precision in gains:
        vsam = arms[f"{precision}-vsam"]
        for share in (vsam.share, vsam.share_over_split, vsam.share_over_own_controls):
            assert share is not None
            assert (share.value, share.note) == (None, "SAM's gain not established")


def test_the_share_over_the_split_control_takes_the_control_in_the_place_of_sgd(comparison: Path) -> None:
    runs = load_results(comparison).runs
    by_arm = {arm: accuracy_by_seed(rows) for arm, rows in runs.groupby("arm")}
    vsam = arms_of(comparison)["w4a4-vsam"]
    expected = share_kept(by_arm["w4a4-vsam"], by_arm["w4a4-split_sgd"], by_arm["w4a4-sam"])
    assert vsam.share_over_split == expected
    assert expected.value is not None
    own = ratio_of_gains(by_arm["w4a4-vsam"], by_arm["w4a4-split_sgd"], by_arm["w4a4-sam"], by_arm["w4a4-sgd"])
    assert vsam.share_over_own_controls == own
    assert own.value < expected.value
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


def test_the_nets_before_training_get_rows_from_what_trained_runs_noted(
    make_run: Callable[..., Path],
) -> None:
    accuracy = {"float_before": 0.9173, "calibrated": 0.85}
    folder = make_run("w4a4", "sgd", 0, accuracy=accuracy).parent.parent
    arms = arms_of(folder)
    assert arms["float32-float-before"].accuracy.value == pytest.approx(91.73)
    assert arms["w4a4-post-training"].accuracy.value == pytest.approx(85.0)
    assert arms["w4a4-post-training"].role == "post_training"


def test_a_random_net_is_no_after_training_quantization(make_run: Callable[..., Path]) -> None:
    # calibrated, but trained by nobody before: 9.6 % is chance
    folder = make_run("w4a4", "sgd", 0, accuracy={"float_before": None, "calibrated": 0.096}).parent.parent
    assert set(arms_of(folder)) == {"w4a4-sgd"}
    make_run("w4a4", "post_training", 0, accuracy={"float_before": None, "calibrated": 0.096, "test": 0.096})
    assert set(arms_of(folder)) == {"w4a4-sgd"}
    with pytest.raises(InputError, match="nets of random weights only"):
        summarise(load_results(folder / "w4a4-post_training" / "seed-0"))


def test_an_interval_of_an_accuracy_ends_at_a_hundred_and_says_that_it_was_cut(make_run: Callable[..., Path]) -> None:
    for seed, test in enumerate((0.99, 0.965)):
        folder = make_run("w4a4", "sgd", seed, accuracy={"test": test}).parent.parent
    accuracy = arms_of(folder)["w4a4-sgd"].accuracy
    assert (accuracy.high, accuracy.clipped) == (100.0, True)
    assert accuracy.low == pytest.approx(97.75 - 12.706 * 1.25, abs=0.01)


def test_the_most_accurate_trained_arm_of_each_group_is_marked(comparison: Path) -> None:
    arms = arms_of(comparison)
    for group in ("Float32", "W4A4"):
        own = [arm for arm in arms.values() if arm.group == group and arm.role != "post_training"]
        most = max(arm.accuracy.value for arm in own)
        (best,) = [arm for arm in own if arm.best]
        assert best.accuracy.value == pytest.approx(most)
    # SAM has the very same mean, at a higher price
    assert arms["w4a4-sam"].accuracy.value == pytest.approx(arms["w4a4-vsam"].accuracy.value)
    assert arms["w4a4-vsam"].best
    assert not arms["w4a4-post_training"].best


def test_sizes_are_those_of_the_files(comparison: Path, make_run: Callable[..., Path]) -> None:
    # the fixture's runs wrote no packed file, whatever packing would have come to
    assert arms_of(comparison)["w4a4-sgd"].file_bytes == {"onnx": 61_240}
    assert arms_of(comparison)["w4a4-sgd"].size_ratio is None
    exports = [{"format": "packed", "bytes": 11_024, "proof": {"passed": True}}]
    arm = arms_of(make_run("w4a4", "sgd", 0, exports=exports))["w4a4-sgd"]
    assert arm.file_bytes == {"packed": 11_024}
    assert arm.size_ratio == pytest.approx(11_024 / 58_312)


def test_draws_count_the_data_seeds(make_run: Callable[..., Path]) -> None:
    for seed in range(3):
        make_run("w4a4", "sgd", seed, data={"seed": seed})
        folder = make_run("w4a4", "sam", seed, data={"seed": 0}).parent.parent
    arms = arms_of(folder)
    assert (arms["w4a4-sgd"].draws, arms["w4a4-sam"].draws) == (3, 1)


@pytest.mark.parametrize(
    ("proof", "word"),
    [
        ({"passed": True, "argmax_agreement": 1.0, "activation_codes_equal": 1.0, "weight_codes_equal": True}, "equal"),
        ({"passed": True, "argmax_agreement": 0.9995, "activation_codes_equal": 1.0}, "within the allowance"),
        ({"passed": True, "argmax_agreement": 1.0, "activation_codes_equal": 0.9999}, "within the allowance"),
        ({"passed": False, "argmax_agreement": 0.5}, "DIFFERS"),
        ({}, "not proven"),
    ],
)
def test_equal_is_said_of_what_is_equal(proof: dict[str, object], word: str, make_run: Callable[..., Path]) -> None:
    exports = [{"format": "packed", "bytes": 10, "proof": proof}]
    assert arms_of(make_run("w4a4", "sgd", 0, exports=exports))["w4a4-sgd"].exports[0].word == word


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
