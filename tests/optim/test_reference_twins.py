"""The fast optimizers compute what the papers' letters say."""

from fractions import Fraction

import pytest
import torch
from problem import BATCH

from qat_vsam.optim import FAMILY, VSAM, OrthogonalPSF, VSAMPaper
from qat_vsam.optim.counter import counter_uniform
from qat_vsam.optim.reference import (
    ReferenceAELookSAM,
    ReferenceAESAM,
    ReferenceASAM,
    ReferenceESAM,
    ReferenceFSAM,
    ReferenceLateSAM,
    ReferenceLESAM,
    ReferenceLookSAM,
    ReferenceMSAM,
    ReferencePeriodicSAM,
    ReferenceRampSAM,
    ReferenceRandomCountSAM,
    ReferenceRandomSAM,
    ReferenceS2SAM,
    ReferenceSAM,
    ReferenceSAMON,
    ReferenceSAQ,
    ReferenceSplitSGD,
    ReferenceVSAM,
    ReferenceVSAMPaper,
)

# A learning rate at which rounding errors die out: nothing else could be equal to 1e-12 after 1,000 steps.
SGD = {"lr": 0.02, "momentum": 0.9, "weight_decay": 1e-2}


def assert_equal(weights, twin, tolerance):
    for w, reference in zip(weights, twin, strict=True):
        torch.testing.assert_close(w.detach(), reference, rtol=0, atol=tolerance)


def uniform(step):
    return counter_uniform(7, step)


STEPS = 1000
# For each member: its options, its twin given a problem, and what the problem must have.
TWINS = {
    "sam": ({"rho": 0.1}, lambda p: ReferenceSAM(p.copies(), p.gradient, rho=0.1, **SGD), {}),
    "asam": (
        {"rho": 0.4, "eta": 0.02},
        lambda p: ReferenceASAM(p.copies(), p.gradient, rho=0.4, eta=0.02, **SGD),
        {},
    ),
    "fsam": (
        {"rho": 0.1, "sigma": 0.8, "decay": 0.6},
        lambda p: ReferenceFSAM(p.copies(), p.gradient, rho=0.1, sigma=0.8, lam=0.6, **SGD),
        {},
    ),
    "sam_on": (
        {"rho": 0.3},
        lambda p: ReferenceSAMON(p.copies(), p.gradient, rho=0.3, norms=(2, 3), **SGD),
        {"batch_norm": True},
    ),
    "le_sam": (
        {"rho": 0.2, "sigma": 0.05, "total_steps": STEPS},
        lambda p: ReferenceLESAM(p.copies(), p.gradient, rho=0.2, sigma=0.05, steps=STEPS, **SGD),
        {},
    ),
    "saq": (
        {"rho": 0.2},
        lambda p: ReferenceSAQ(p.copies(), p.gradients_behind, rho=0.2, **SGD),
        {"quantized": True},
    ),
    "esam": (
        {"rho": 0.1, "beta": 0.6, "share": 0.5, "seed": 7},
        lambda p: ReferenceESAM(
            p.copies(), p.gradient, rho=0.1, losses=p.losses_at, uniform=uniform, beta=0.6, gamma=0.5, **SGD
        ),
        {},
    ),
    "msam": ({"rho": 0.2}, lambda p: ReferenceMSAM(p.copies(), p.gradient, rho=0.2, **SGD), {}),
    "s2_sam": ({"rho": 0.1}, lambda p: ReferenceS2SAM(p.copies(), p.gradient, rho=0.1, **SGD), {}),
    "looksam": (
        {"rho": 0.1, "interval": 4, "alpha": 0.6},
        lambda p: ReferenceLookSAM(p.copies(), p.gradient, rho=0.1, k=4, alpha=0.6, **SGD),
        {},
    ),
    "ae_sam": (
        {"rho": 0.1, "total_steps": STEPS},
        lambda p: ReferenceAESAM(p.copies(), p.gradient, rho=0.1, T=STEPS, **SGD),
        {},
    ),
    "ae_looksam": (
        {"rho": 0.1, "total_steps": STEPS, "last": 0.5},
        lambda p: ReferenceAELookSAM(p.copies(), p.gradient, rho=0.1, T=STEPS, lam_1=0.5, **SGD),
        {},
    ),
    "random_sam": (
        {"rho": 0.1, "probability": 0.3, "seed": 7},
        lambda p: ReferenceRandomSAM(p.copies(), p.gradient, rho=0.1, p=0.3, uniform=uniform, **SGD),
        {},
    ),
    "periodic_sam": (
        {"rho": 0.1, "interval": 9, "reuse": 0.7},
        lambda p: ReferencePeriodicSAM(p.copies(), p.gradient, rho=0.1, k=9, gamma=0.7, **SGD),
        {},
    ),
    "random_count_sam": (
        {"rho": 0.1, "count": 150, "total_steps": STEPS, "seed": 7},
        lambda p: ReferenceRandomCountSAM(
            p.copies(), p.gradient, rho=0.1, n=150, N=STEPS, uniform=uniform, gamma=0.7, **SGD
        ),
        {},
    ),
    "ramp_sam": (
        {"rho": 0.1, "total_steps": STEPS, "first": 0.0, "last": 0.6},
        lambda p: ReferenceRampSAM(
            p.copies(), p.gradient, rho=0.1, a=Fraction(0), b=Fraction(3, 5), N=STEPS, gamma=0.7, **SGD
        ),
        {},
    ),
    "late_sam": (
        {"rho": 0.1, "total_steps": STEPS},
        lambda p: ReferenceLateSAM(p.copies(), p.gradient, rho=0.1, begin=800, **SGD),
        {},
    ),
    "split_sgd": (
        {"share": 0.3, "rate": 1.0},
        lambda p: ReferenceSplitSGD(p.copies(), p.gradient, q=Fraction(3, 10), batch_size=BATCH, **SGD),
        {},
    ),
    "vsam": (
        {"rho": 0.2, "largest_rise": 0.1},
        lambda p: ReferenceVSAM(
            p.copies(),
            p.gradient,
            budget=Fraction(23, 20),
            rho=0.2,
            batch_size=BATCH,
            loss=p.loss_at,
            kappa=0.1,
            **SGD,
        ),
        {},
    ),
    "vsam_paper": (
        {"warmup_steps": 60, "gains": (0.9, 0.9), "norm_tensors": 3, "seed": 7},
        lambda p: ReferenceVSAMPaper(p.copies(), p.gradient, warmup=60, uniform=uniform, a=0.9, b=0.9, N=3, **SGD),
        {},
    ),
}


def assert_equal_to_its_twin(problem, name, seed, steps):
    options, build_twin, needed = TWINS[name]
    task = problem(seed, **needed)
    optimizer = FAMILY[name](task.weights, torch.optim.SGD, model=task.model, **options, **SGD)
    twin = build_twin(task)
    start = task.copies()
    for step in range(steps):
        twin.step()
        task.step(optimizer)
        if hasattr(twin, "decisions"):
            assert (optimizer.last_share > 0) == twin.decisions[step], step
        if hasattr(twin, "thresholds"):
            schedule, c = optimizer.schedule, 1 + (options.get("last", -1) - 1) * step / STEPS
            assert schedule.mean + c * schedule.variance**0.5 == pytest.approx(twin.thresholds[step], rel=1e-9)
        if getattr(twin, "g_v", None) is not None:
            scale = sum(float((g**2).sum()) for g in twin.g_v) ** 0.5
            assert_equal([optimizer.state[w]["psf"] for w in task.weights], [g / scale for g in twin.g_v], 1e-9)
        if getattr(twin, "m", None) is not None:
            assert_equal([optimizer.state[w]["direction"] for w in task.weights], twin.m, 1e-12)
        if step % 50 == 49:
            assert_equal(task.weights, twin.w, 1e-12)
    # A step that did nothing would be equal too.
    assert not any(torch.equal(a, b) for a, b in zip(start, twin.w, strict=True))
    return twin


def test_every_member_has_a_twin():
    assert set(TWINS) == set(FAMILY)


@pytest.mark.parametrize("name", TWINS)
def test_a_member_equals_its_twin_over_a_thousand_steps(problem, name):
    twin = assert_equal_to_its_twin(problem, name, seed=0, steps=STEPS)
    if hasattr(twin, "decisions"):
        assert 0.02 < sum(twin.decisions) / STEPS < 0.98


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", TWINS)
def test_a_member_equals_its_twin_for_twenty_seeds(problem, name, seed):
    assert_equal_to_its_twin(problem, name, seed, STEPS)


@pytest.mark.parametrize(
    ("options", "twin_options"),
    [
        ({"share": 0.5, "gradient_budget": 1.2}, {"q": Fraction(1, 2), "budget": Fraction(6, 5)}),
        ({"gradient_budget": 1.25, "reuse": 0.7}, {"budget": Fraction(5, 4), "gamma": 0.7}),
        ({"gradient_budget": 1.1, "reuse": 0.7}, {"budget": Fraction(11, 10), "gamma": 0.7}),
        ({"gradient_budget": 1.5}, {"q": Fraction(1, 2), "budget": Fraction(3, 2)}),
        ({"share": 0.75, "gradient_budget": 1.75}, {"q": Fraction(3, 4), "budget": Fraction(7, 4)}),
        (
            {"method": "interval", "interval": 5, "reuse": 0.5},
            {"q": Fraction(1), "budget": Fraction(6, 5), "gamma": 0.5},
        ),
        (
            {"method": "ascend_part", "gradient_budget": 1.15},
            {"q": Fraction(1, 4), "budget": Fraction(23, 20), "ascend_only": True},
        ),
    ],
    ids=["share-1/2", "reuse", "rarely", "what-the-budget-needs", "share-3/4", "interval", "ascend-part"],
)
def test_vsam_with_a_budget_equals_its_twin(problem, options, twin_options):
    task = problem()
    rho = {"rho": 0.1, "largest_rise": None}
    optimizer = VSAM(task.weights, torch.optim.SGD, model=task.model, **rho, **options, **SGD)
    twin = ReferenceVSAM(task.copies(), task.gradient, rho=0.1, batch_size=BATCH, **twin_options, **SGD)
    for _ in range(200):
        twin.step()
        task.step(optimizer)
    assert_equal(task.weights, twin.w, 1e-12)
    assert optimizer.gradient_evaluations == pytest.approx(float(twin.cost))


@pytest.mark.parametrize("gain", [0.13, 0.9])
def test_vsam_paper_equals_its_twin_in_double_precision(problem, gain):
    task = problem()
    warmup = 3 * 17
    optimizer = VSAMPaper(
        task.weights,
        torch.optim.SGD,
        model=task.model,
        warmup_steps=warmup,
        gains=(gain, gain),
        norm_tensors=3,
        uniform=uniform,
        **SGD,
    )
    twin = ReferenceVSAMPaper(task.copies(), task.gradient, warmup=warmup, uniform=uniform, a=gain, b=gain, N=3, **SGD)
    decisions = []
    for _ in range(warmup + 400):
        twin.step()
        task.step(optimizer)
        decisions.append(optimizer.statistics()["share"] == 1.0)
    assert decisions == twin.decisions
    assert_equal(task.weights, twin.w, 1e-12)
    assert optimizer.statistics()["payments"] == pytest.approx(twin.s, rel=1e-9)
    assert 7 <= sum(decisions[warmup:]) < 400


def test_vsam_paper_follows_its_twin_step_by_step_in_single_precision(problem):
    task = problem(dtype=torch.float32)
    options = {"warmup_steps": 51, "gains": (0.9, 0.9), "norm_tensors": 3, "seed": 3}
    optimizer = VSAMPaper(task.weights, torch.optim.SGD, model=task.model, **options, **SGD)
    twin = ReferenceVSAMPaper(
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


def test_what_looksam_reuses_is_across_a_gradient_that_is_far_smaller_than_it():
    generator = torch.Generator().manual_seed(0)
    w, g, h = (torch.randn(1000, generator=generator) for _ in range(3))
    g *= 1e-4
    g_s = g + h
    kept = OrthogonalPSF().prepare({w: h.clone()}, {w: g_s.clone()})[w]
    exact = h.double() - (h.double() @ g.double()) / (g.double() @ g.double()) * g.double()
    torch.testing.assert_close(kept.double(), exact / exact.norm(), rtol=0, atol=1e-5)
