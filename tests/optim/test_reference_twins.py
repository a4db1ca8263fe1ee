"""The fast optimizers compute what the papers' letters say."""

from fractions import Fraction

import pytest
import torch

from qat_vsam.optim import SAM, VSAM
from qat_vsam.optim.reference import ReferenceBudget, ReferenceSAM, ReferenceVSAM
from qat_vsam.optim.variance_schedule import counter_uniform

BATCH = 12
# A learning rate at which rounding errors die out: nothing else could be equal to 1e-12 after 1,000 steps.
SGD = {"lr": 0.02, "momentum": 0.9, "weight_decay": 1e-2}


def assert_equal(weights, twin, tolerance):
    for w, reference in zip(weights, twin, strict=True):
        torch.testing.assert_close(w.detach(), reference, rtol=0, atol=tolerance)


@pytest.mark.parametrize("seed", range(2))
def test_sam_equals_its_twin_over_a_thousand_steps(problem, seed):
    task = problem(seed)
    optimizer = SAM(task.weights, torch.optim.SGD, model=task.model, rho=0.1, **SGD)
    twin = ReferenceSAM(task.copies(), task.gradient, rho=0.1, **SGD)
    for _ in range(1000):
        twin.step()
        task.step(optimizer)
    assert_equal(task.weights, twin.w, 1e-12)


@pytest.mark.parametrize(
    ("options", "twin_options"),
    [
        ({}, {}),
        ({"share": 0.25, "gradient_budget": 1.1}, {"q": Fraction(1, 4), "budget": Fraction(11, 10)}),
        ({"share": 0.75, "gradient_budget": 1.75}, {"q": Fraction(3, 4), "budget": Fraction(7, 4)}),
        ({"reuse": 0.0}, {"gamma": 0.0}),
        ({"method": "interval", "interval": 5}, {"q": Fraction(1), "budget": Fraction(6, 5)}),
        ({"method": "ascend_part"}, {"q": Fraction(1, 4), "ascend_only": True}),
    ],
    ids=["default", "share-1/4", "share-3/4", "no-reuse", "interval", "ascend-part"],
)
def test_vsam_with_a_budget_equals_its_twin(problem, options, twin_options):
    task = problem()
    optimizer = VSAM(task.weights, torch.optim.SGD, model=task.model, rho=0.1, **options, **SGD)
    twin = ReferenceBudget(task.copies(), task.gradient, rho=0.1, batch_size=BATCH, **twin_options, **SGD)
    for _ in range(400):
        twin.step()
        task.step(optimizer)
    assert_equal(task.weights, twin.w, 1e-12)
    assert optimizer.gradient_evaluations == pytest.approx(float(twin.cost))


@pytest.mark.parametrize("gain", [0.13, 0.9])
def test_vsam_as_published_equals_its_twin_in_double_precision(problem, gain):
    task = problem()
    warmup = 3 * 17

    def uniform(step):
        return counter_uniform(7, step)

    optimizer = VSAM(
        task.weights,
        torch.optim.SGD,
        model=task.model,
        schedule="variance",
        warmup_steps=warmup,
        gains=(gain, gain),
        norm_tensors=3,
        uniform=uniform,
        **SGD,
    )
    twin = ReferenceVSAM(task.copies(), task.gradient, warmup=warmup, uniform=uniform, a=gain, b=gain, N=3, **SGD)
    decisions = []
    for _ in range(warmup + 400):
        twin.step()
        task.step(optimizer)
        decisions.append(optimizer.statistics()["share"] == 1.0)
    assert decisions == twin.decisions
    assert_equal(task.weights, twin.w, 1e-12)
    assert optimizer.statistics()["payments"] == pytest.approx(twin.s, rel=1e-9)
    assert 7 <= sum(decisions[warmup:]) < 400


def test_vsam_as_published_follows_its_twin_step_by_step_in_single_precision(problem):
    task = problem(dtype=torch.float32)
    options = {"warmup_steps": 51, "gains": (0.9, 0.9), "norm_tensors": 3, "seed": 3}
    optimizer = VSAM(task.weights, torch.optim.SGD, model=task.model, schedule="variance", **options, **SGD)
    twin = ReferenceVSAM(
        task.copies(),
        task.gradient,
        warmup=51,
        uniform=lambda step: counter_uniform(3, step),
        a=0.9,
        b=0.9,
        N=3,
        **SGD,
    )
    decisions = []
    for _ in range(451):
        # Each step starts from the same state, so that rounding cannot add up.
        for w, reference in zip(task.weights, twin.w, strict=True):
            reference.copy_(w.detach())
        if optimizer.steps:
            state = [optimizer.state[w] for w in task.weights]
            twin.velocity = [s["momentum_buffer"].clone() for s in state]
            twin.h = [s["psf"].clone() for s in state]
        twin.step()
        task.step(optimizer)
        decisions.append(optimizer.statistics()["share"] == 1.0)
        assert_equal(task.weights, twin.w, 1e-6)
    assert decisions == twin.decisions
