"""When a second gradient is paid for: the budget is kept, the published decisions are reproduced."""

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qat_vsam.errors import CheckpointError, ConfigError
from qat_vsam.optim import PSF, BudgetSchedule, EveryStep, VarianceSchedule
from qat_vsam.optim.variance_schedule import counter_uniform


def drive(schedule, steps, cost=None, learning_rates=None, norms=None):
    """Run a schedule alone; which steps paid. `norms` yields (|h|, |g|) at each of those."""
    cost = schedule.share if cost is None else cost
    decisions, unread = [], []
    for step in range(steps):
        rate = 0.1 if learning_rates is None else learning_rates[step]
        pays = schedule.pays(cost, rate)
        if pays and norms is not None:
            unread.append(next(norms))
        if schedule.wants_measurements:
            for pair in unread:
                schedule.measure(*pair)
            unread = []
        schedule.advance(cost if pays else 0.0, rate)
        decisions.append(pays)
    return decisions


@settings(max_examples=200, deadline=None)
@given(
    share=st.floats(0.05, 1.0),
    fraction=st.floats(0.0, 1.0),
    steps=st.integers(1, 300),
)
def test_a_run_of_any_length_costs_its_budget_to_within_one_payment(share, fraction, steps):
    budget = 1 + fraction * share
    spent = share * sum(drive(BudgetSchedule(budget, share), steps))
    assert spent <= steps * (budget - 1) + 1e-6
    assert spent > steps * (budget - 1) - share - 1e-6


@pytest.mark.parametrize(("share", "period"), [(0.5, 2), (0.25, 1), (1.0, 4)])
def test_a_budget_of_one_and_a_quarter_pays_periodically(share, period):
    decisions = drive(BudgetSchedule(1.25, share), 40)
    assert decisions == [(step + 1) % period == 0 for step in range(40)]


@settings(max_examples=100, deadline=None)
@given(total=st.integers(1, 400))
def test_early_spending_ends_at_six_tenths_and_keeps_the_whole_run_to_the_budget(total):
    schedule = BudgetSchedule(1.15, 0.25, total_steps=total, spend="early")
    decisions = drive(schedule, total)
    last_early = math.ceil(0.6 * total)
    assert not any(decisions[last_early:])
    assert total * 0.15 - 0.25 - 1e-6 < 0.25 * sum(decisions) <= total * 0.15 + 1e-6


@settings(max_examples=100, deadline=None)
@given(total=st.integers(1, 400))
def test_late_spending_begins_at_four_tenths_and_keeps_the_whole_run_to_the_budget(total):
    schedule = BudgetSchedule(1.15, 0.25, total_steps=total, spend="late")
    decisions = drive(schedule, total)
    assert not any(decisions[: math.floor(0.4 * total)])
    assert total * 0.15 - 0.25 - 1e-6 < 0.25 * sum(decisions) <= total * 0.15 + 1e-6


def test_spending_by_learning_rate_follows_it_and_stays_below_the_budget():
    rates = [0.5 * (1 + math.cos(math.pi * t / 400)) for t in range(400)]
    decisions = drive(BudgetSchedule(1.25, 0.5, spend="learning_rate"), 400, learning_rates=rates)
    quarters = [sum(decisions[k : k + 100]) for k in range(0, 400, 100)]
    assert quarters == sorted(quarters, reverse=True)
    for n in range(1, 401):
        assert 0.5 * sum(decisions[:n]) <= 0.25 * n
    assert 0.5 * sum(decisions) == pytest.approx(0.25 * sum(rates), abs=0.5)


def test_credit_that_could_not_be_spent_is_not_spent_in_a_burst():
    schedule = BudgetSchedule(1.25, 0.5)
    for _ in range(1000):
        schedule.advance(0.0, 0.1)
    assert sum(drive(schedule, 20)) <= 10 + 2


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"gradient_budget": 2.0}, "gradient_budget"),
        ({"gradient_budget": 0.9}, "gradient_budget"),
        ({"gradient_budget": float("nan")}, "gradient_budget"),
        ({"share": 0.0}, "share"),
        ({"share": 1.5}, "share"),
        ({"spend": "eraly", "total_steps": 9}, "spend"),
        ({"spend": "early"}, "total_steps"),
        ({"spend": "late"}, "total_steps"),
    ],
)
def test_a_budget_that_cannot_be_kept_is_refused_by_name(options, key):
    with pytest.raises(ConfigError, match=rf"^{key}: got"):
        BudgetSchedule(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"warmup_steps": -1},
        {"window": 49},
        {"window": 5},
        {"cap": 0.001},
        {"cap": 1.5},
        {"initial_payments": 41.0},
        {"norm_tensors": 0},
        {"bias": "linear"},
        {"gains": (0.1,)},
    ],
)
def test_wrong_constants_of_the_published_schedule_are_refused_by_name(options):
    with pytest.raises(ConfigError, match=rf"^{next(iter(options))}: got"):
        VarianceSchedule(**{"warmup_steps": 3, **options})


@pytest.mark.parametrize(("held", "payments"), [(1, 1), (1.9, 1), (5.3, 5), (20, 20), (40, 40)])
def test_a_held_rate_pays_exactly_that_often_in_each_window(held, payments):
    schedule = VarianceSchedule(warmup_steps=3, gains=(0.0, 0.0), initial_payments=held)
    after_warmup = drive(schedule, 3 + 49 + 20 * 50)[3:]
    windows = [sum(after_warmup[k : k + 50]) for k in range(49, len(after_warmup), 50)]
    assert windows == [payments] * 20


def test_the_first_49_steps_after_the_warm_up_hold_no_payment():
    decisions = drive(VarianceSchedule(warmup_steps=6), 6 + 49)
    assert decisions == [True] * 6 + [False] * 49


@pytest.mark.parametrize(("held", "share"), [(1, 0.12), (5, 0.44), (20, 0.91)])
def test_reuse_covers_the_published_share_of_the_plain_steps(held, share):
    schedule = VarianceSchedule(warmup_steps=3, gains=(0.0, 0.0), initial_payments=held)
    psf, covered, plain = PSF(0.7), 0, 0
    for paid in drive(schedule, 20_000)[100:]:
        if paid:
            psf.keep({}, {})
        else:
            plain += 1
            covered += psf.weight() > 0
            psf.grow_older()
    assert covered / plain == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize("gamma", [0.5, 0.6, 0.7, 0.8, 0.9])
def test_reuse_lasts_six_steps_whatever_gamma(gamma):
    psf, weights = PSF(gamma), []
    psf.keep({}, {})
    for _ in range(9):
        weights.append(psf.weight())
        psf.grow_older()
    assert weights == [gamma**i for i in range(1, 7)] + [0.0] * 3


def test_noise_alone_drives_the_published_rate_to_its_cap_and_leaves_the_log_rate_alone():
    rates = {}
    for bias in ("relative", "log"):
        draw = random.Random(0)
        noise = ((draw.lognormvariate(0, 0.2), draw.lognormvariate(0, 0.2)) for _ in itertools.count())
        schedule = VarianceSchedule(warmup_steps=150, bias=bias)
        drive(schedule, 150 + 540 * 50, norms=noise)
        rates[bias] = schedule.payments
    assert rates["relative"] == 40.0
    assert 1.0 <= rates["log"] < 2.0


@pytest.mark.parametrize("steps_per_epoch", [1, 2, 5, 16, 17])
def test_a_warm_up_of_any_length_leads_into_a_schedule_that_runs(steps_per_epoch):
    norms = ((1.0 + 0.1 * (k % 3), 2.0) for k in itertools.count())
    schedule = VarianceSchedule(warmup_steps=3 * steps_per_epoch, gains=(0.9, 0.9))
    drive(schedule, 3 * steps_per_epoch + 500, norms=norms)
    assert 1.0 <= schedule.payments <= 40.0


@settings(max_examples=60, deadline=None)
@given(
    norms=st.lists(st.tuples(st.floats(allow_nan=True, allow_infinity=True), st.floats(allow_nan=True)), min_size=1),
    gains=st.tuples(st.floats(-5, 5), st.floats(-5, 5)),
    bias=st.sampled_from(["relative", "log"]),
)
def test_no_measurement_drives_the_rate_out_of_bounds(norms, gains, bias):
    schedule = VarianceSchedule(warmup_steps=20, window=10, gains=gains, bias=bias)
    drive(schedule, 400, norms=itertools.cycle(norms))
    assert 1.0 <= schedule.payments <= 8.0
    assert 0.0 <= schedule.rate <= 1.0


def test_a_saved_schedule_goes_on_as_if_nothing_had_happened():
    for make in (
        lambda: VarianceSchedule(warmup_steps=20, gains=(0.9, 0.9)),
        lambda: BudgetSchedule(1.15, 0.5),
        EveryStep,
    ):
        norms = [(1.0 + 0.1 * (k % 7), 2.0) for k in range(700)]
        whole, first, second = make(), make(), make()
        expected = drive(whole, 600, norms=iter(norms))
        begun = drive(first, 269, norms=iter(norms))
        second.load_state_dict(first.state_dict())
        resumed = drive(second, 331, norms=iter(norms[sum(begun) :]))
        assert begun + resumed == expected
        assert second.state_dict() == whole.state_dict()


def test_a_state_of_another_schedule_is_refused():
    with pytest.raises(CheckpointError, match="BudgetSchedule"):
        BudgetSchedule().load_state_dict(VarianceSchedule(warmup_steps=3).state_dict())


def test_counter_uniforms_are_uniform_and_independent_of_the_order_of_calls():
    numbers = [counter_uniform(0, k) for k in range(20_000)]
    assert all(0 <= u < 1 for u in numbers)
    assert sum(numbers) / 20_000 == pytest.approx(0.5, abs=0.01)
    tenths = [sum(u * 10 // 1 == k for u in numbers) for k in range(10)]
    assert max(abs(t - 2000) for t in tenths) < 250
    successive = sum((u - 0.5) * (v - 0.5) for u, v in itertools.pairwise(numbers)) / 20_000
    assert abs(successive) < 0.005
    assert numbers[17] == counter_uniform(0, 17) != counter_uniform(1, 17)
