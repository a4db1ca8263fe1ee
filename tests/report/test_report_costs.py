"""Cost is in one unit for all arms, a float32 SGD run; times are the bench's or nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from qat_vsam.report import Arm, Reach, load_results, load_study, summarise

BENCH = {"unit": "float32 SGD step", "threads": 1, "repeats": 30}


def arms_of(folder: Path) -> dict[str, Arm]:
    return {arm.name: arm for arm in summarise(load_results(folder))}


def steps(count: int, gradients: float) -> dict[str, Any]:
    return {
        "steps": count,
        "gradient_evaluations": gradients * count,
        "gradient_evaluations_per_step": gradients,
        "train_seconds": 999.0 * gradients,
    }


def curve(folder: Path, points: Sequence[tuple[float | None, float]], every: int = 100) -> None:
    """Writes epochs with (validation accuracy, gradient evaluations so far)."""
    lines = [
        {
            "kind": "epoch",
            "epoch": number,
            "step": every * number,
            "validation_accuracy": accuracy,
            "gradient_evaluations": gradients,
        }
        for number, (accuracy, gradients) in enumerate(points, start=1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_all_arms_are_counted_in_runs_of_float32_sgd(make_run: Callable[..., Path]) -> None:
    make_run("float32", "sgd", 0, cost=steps(400, 1.0))
    make_run("w4a4", "sgd", 0, cost=steps(600, 1.0))
    root = make_run("w4a4", "vsam", 0, cost=steps(600, 1.15)).parent.parent
    arms = arms_of(root)
    assert {name: (arm.gradients, arm.run_gradients) for name, arm in arms.items()} == {
        "float32-sgd": (1.0, 1.0),
        "w4a4-sgd": (1.0, 1.5),
        "w4a4-vsam": (1.15, pytest.approx(1.725)),
    }
    assert not [line for line in load_study(root).caveats if "unit of gradients" in line]


def test_without_float32_sgd_its_steps_are_those_of_another_sgd_and_that_is_said(make_run: Callable[..., Path]) -> None:
    make_run("w4a4", "sgd", 0, cost=steps(600, 1.0))
    root = make_run("w4a4", "vsam", 0, cost=steps(600, 1.15)).parent.parent
    assert arms_of(root)["w4a4-vsam"].run_gradients == pytest.approx(1.15)
    expected = "No arm is SGD in float32: the unit of gradients is the steps of w4a4-sgd, one gradient each."
    assert expected in load_study(root).caveats
    alone = arms_of(root / "w4a4-vsam" / "seed-0")["w4a4-vsam"]
    assert (alone.gradients, alone.run_gradients) == (1.15, None)


def test_times_are_the_benchs_or_nothing(make_run: Callable[..., Path]) -> None:
    make_run("float32", "sgd", 0, cost=steps(400, 1.0))
    root = make_run("w4a4", "vsam", 0, cost=steps(600, 1.15)).parent.parent
    untimed = arms_of(root)["w4a4-vsam"]
    assert (untimed.step_time, untimed.run_time) == (None, None)
    assert any(line.startswith("No step times") for line in load_study(root).caveats)
    rows = [{"arm": "w4a4-vsam", "median_ms": 5.0, "ratio": 1.4, "ratio_low": 1.38, "ratio_high": 1.5, "n": 30}]
    (root / "bench.json").write_text(json.dumps(BENCH | {"rows": rows}))
    timed = arms_of(root)["w4a4-vsam"]
    assert (timed.step_time.value, timed.step_time.low, timed.step_time.high) == (1.4, 1.38, 1.5)
    # 600 steps for 400
    assert timed.run_time.value == pytest.approx(2.1)
    assert (timed.run_time.low, timed.run_time.high) == (pytest.approx(2.07), pytest.approx(2.25))
    assert arms_of(root)["float32-sgd"].step_time is None


def test_reach_is_where_the_mean_curve_crosses_sams_last_point(make_run: Callable[..., Path]) -> None:
    make_run("float32", "sgd", 0, cost=steps(400, 1.0))
    for seed, shift in ((0, 0.0), (1, 0.02)):
        curve(make_run("w4a4", "sam", seed), [(0.5 + shift, 200), (0.7 + shift, 400), (0.79 + shift, 800)])
        # the mean passes 0.80 a quarter of the way from its second point to its third
        fast = [(0.6 + shift, 110), (0.78 + shift, 220), (0.82 + shift, 330)]
        curve(make_run("w4a4", "vsam", seed), fast)
        root = make_run("w4a4", "sgd", seed).parent.parent
        curve(root / "w4a4-sgd" / f"seed-{seed}", [(0.5, 100), (0.6, 200), (0.7, 300)])
    rows = [{"arm": "w4a4-vsam", "ratio": 1.2}]
    (root / "bench.json").write_text(json.dumps(BENCH | {"rows": rows}))
    arms = arms_of(root)
    vsam = arms["w4a4-vsam"].reach
    assert vsam.gradients == pytest.approx((220 + 110 / 4) / 400)
    assert vsam.time == pytest.approx(1.2 * (200 + 100 / 4) / 400)
    assert arms["w4a4-sam"].reach == Reach(pytest.approx(2.0), None)
    assert arms["w4a4-sgd"].reach == Reach(None, None, "not reached")
    assert arms["float32-sgd"].reach is None


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(0.9, 100), (0.9, 200), (0.9, 300)], Reach(100 / 540, None)),
        ([(0.9, 100), (0.9, 200)], Reach(None, None, "no curve")),
        ([(None, 100), (0.2, 200), (0.9, 300)], Reach(None, None, "no curve")),
    ],
)
def test_a_curve_needs_three_points(
    points: list[tuple[float | None, float]], expected: Reach, make_run: Callable[..., Path]
) -> None:
    make_run("float32", "sgd", 0)
    curve(make_run("w4a4", "sam", 0), [(0.5, 200), (0.7, 400), (0.8, 800)])
    folder = make_run("w4a4", "vsam", 0)
    curve(folder, points)
    assert arms_of(folder.parent.parent)["w4a4-vsam"].reach == expected
