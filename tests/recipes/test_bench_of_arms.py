"""Promises of the bench: every arm in units of one float32 SGD step of the same net, each with its interval."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from qat_vsam import config
from qat_vsam.evaluate import Timing
from qat_vsam.recipes import bench_arms, benchmark
from qat_vsam.recipes.benchmark import UNIT, as_unit, median_interval

Build = Callable[..., config.Recipe]
Call = Callable[..., tuple[int, str, str]]
SECTION = config.BenchSection(repeats=6, steps=2)


def made_up(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, list[float]]) -> list[str]:
    """Let the clock show these times; returns what was timed."""
    timed: list[str] = []

    def interleave(workloads: dict[str, Any], repeats: int, warmup: int) -> dict[str, Timing]:
        timed.extend(workloads)
        for workload in workloads.values():
            workload()
        return {name: Timing(tuple(seconds[name])) for name in workloads}

    monkeypatch.setattr(benchmark, "interleave", interleave)
    return timed


def test_a_float32_sgd_arm_is_the_unit(small_recipe: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    arms = {
        "w4a4-sgd": small_recipe(optimizer={"name": "sgd"}),
        "float32-adamw": small_recipe(quant=None, optimizer={"name": "sgd", "base": "adamw"}),
        "float32-sgd": small_recipe(quant=None, optimizer={"name": "sgd"}),
        "after": small_recipe(train={"epochs": 0}),
    }
    seconds = {
        "w4a4-sgd": [0.3, 0.6, 0.9, 1.2, 1.5, 2.4],
        "float32-adamw": [0.2] * 6,
        "float32-sgd": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
    }
    timed = made_up(monkeypatch, seconds)
    found = bench_arms(arms, SECTION)
    assert timed == ["w4a4-sgd", "float32-adamw", "float32-sgd"]
    assert (found["unit"], found["threads"], found["repeats"], found["steps"]) == ("float32 SGD step", 1, 6, 2)
    assert found["unit_ms"] == pytest.approx(175)
    rows = {row["arm"]: row for row in found["rows"]}
    assert list(rows) == timed
    quantized = rows["w4a4-sgd"]
    # within a round: three units in five rounds, four in one
    assert [quantized[key] for key in ("ratio", "ratio_low", "ratio_high")] == pytest.approx([3, 3, 4])
    assert quantized["median_ms"] == pytest.approx(525)
    assert quantized["n"] == 6
    assert [rows["float32-sgd"][key] for key in ("ratio", "ratio_low", "ratio_high")] == [1, 1, 1]


def test_where_no_arm_is_float32_sgd_its_step_is_timed_beside_them(
    small_recipe: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = {"w4a4-vsam": small_recipe()}
    timed = made_up(monkeypatch, {"w4a4-vsam": [0.4] * 6, UNIT: [0.2] * 6})
    found = bench_arms(arms, SECTION)
    assert timed == ["w4a4-vsam", UNIT]
    assert [(row["arm"], row["ratio"]) for row in found["rows"]] == [("w4a4-vsam", pytest.approx(2))]
    unit = as_unit(arms["w4a4-vsam"])
    assert (unit.precision, unit.optimizer.name, unit.optimizer.base) == ("float32", "sgd", "sgd")
    assert (unit.model, unit.data) == (arms["w4a4-vsam"].model, arms["w4a4-vsam"].data)


def test_without_a_trained_arm_nothing_is_timed(small_recipe: Build) -> None:
    found = bench_arms({"after": small_recipe(train={"epochs": 0})}, SECTION)
    assert (found["rows"], found["unit_ms"]) == ([], None)


@given(st.lists(st.floats(0.1, 10), min_size=6, max_size=60))
def test_the_interval_of_a_median_holds_it_and_covers_95_per_cent(values: list[float]) -> None:
    low, high = median_interval(values)
    ordered = sorted(values)
    assert low <= ordered[(len(ordered) - 1) // 2] <= high
    ranks = list(range(1, len(values) + 1))
    first, last = (int(end) for end in median_interval([float(rank) for rank in ranks]))
    assert first + last == len(values) + 1
    # the median lies outside where fewer than `first` values fall on one side of it
    missed = 2 * stats.binom.cdf(first - 1, len(values), 0.5)
    assert missed <= 0.05 < 2 * stats.binom.cdf(first, len(values), 0.5)


def test_the_command_line_prints_unit_and_intervals(command_line: Call, tmp_path: Path) -> None:
    content = {
        "name": "g",
        "title": "t",
        "recipe": {
            "model": {"name": "digits_cnn", "options": {"width": 4}},
            "data": {"name": "digits", "train_size": 100, "batch_size": 20},
            "optimizer": {"name": "sgd"},
        },
        "arms": {"float32-sam": {"optimizer": {"name": "sam"}}},
        "bench": {"steps": 1},
    }
    (tmp_path / "g.yaml").write_text(json.dumps(content))
    code, out, err = command_line("bench", tmp_path / "g.yaml", "--repeats", "6")
    assert code == 0, err
    unit, row = out.splitlines()
    assert unit.startswith("unit: a float32 SGD step, ")
    assert row.startswith("float32-sam")
    assert "units [" in row
    code, _, err = command_line("bench", tmp_path / "g.yaml", "--repeats", "5")
    assert code == 2
    assert "bench.repeats: got 5" in err
