from __future__ import annotations

from collections.abc import Callable
from functools import partial
from unittest import mock

import pytest
import torch

from qat_vsam.errors import ConfigError
from qat_vsam.evaluate import Timing, interleave, latency, median_ratio


def test_workloads_run_in_turn_and_only_timed_rounds_count() -> None:
    calls: list[str] = []

    def workload(name: str) -> Callable[[], None]:
        return lambda: calls.append(name)

    rounds: list[tuple[int, int]] = []
    timings = interleave(
        {name: workload(name) for name in "abc"},
        repeats=4,
        warmup=2,
        synchronize=workload("wait"),
        progress=lambda *done: rounds.append(done),
    )
    assert calls == ["a", "wait", "b", "wait", "c", "wait"] * 6
    assert rounds[-1] == (6, 6)
    assert list(timings) == ["a", "b", "c"]
    assert all(len(timing.times) == 4 and min(timing.times) >= 0 for timing in timings.values())


def test_turns_of_a_round_are_taken_in_turn_and_summed() -> None:
    calls: list[str] = []
    # each look at the clock finds it one second later
    with mock.patch("time.perf_counter", side_effect=map(float, range(1000))):
        timings = interleave({name: partial(calls.append, name) for name in "ab"}, repeats=2, warmup=1, turns=3)
    assert calls == ["a", "b"] * 9
    assert timings["a"].times == timings["b"].times == (3.0, 3.0)


def test_ratios_are_taken_within_a_round() -> None:
    # the machine becomes ten times slower half way: the ratio of medians would say 5.5 or so
    slow, fast = Timing((2.0, 2.0, 20.0, 20.0)), Timing((1.0, 1.0, 10.0, 10.0))
    assert median_ratio(slow, fast) == 2.0
    assert median_ratio(Timing((2.0, 30.0, 20.0)), Timing((1.0, 10.0, 1.0))) == 3.0


def test_a_timing_knows_its_median_and_quartiles() -> None:
    timing = Timing((5.0, 1.0, 2.0, 4.0, 3.0))
    assert timing.median == 3.0
    assert timing.quartiles == (2.0, 4.0)
    assert Timing((7.0,)).quartiles == (7.0, 7.0)


def test_latency_reports_milliseconds_of_the_call() -> None:
    calls: list[int] = []
    result = latency(lambda x: calls.append(len(x)), torch.zeros(3), repeats=5, warmup=1)
    assert calls == [3] * 6
    assert result.n == 5
    assert 0 <= result.first_quartile_ms <= result.median_ms <= result.third_quartile_ms


def test_impossible_rounds_are_refused() -> None:
    with pytest.raises(ConfigError, match="repeats"):
        interleave({}, repeats=0)
    with pytest.raises(ConfigError, match="warmup"):
        interleave({}, repeats=1, warmup=-1)
    with pytest.raises(ConfigError, match="turns"):
        interleave({}, turns=0)
    with pytest.raises(ConfigError, match="as many rounds for both"):
        median_ratio(Timing((1.0,)), Timing((1.0, 2.0)))
