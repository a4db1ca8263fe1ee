"""No cache of weights stands between the passes of a step, and a second pass that saw nothing new is named."""

import copy
import logging
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.nn.utils import parametrize

from qat_vsam.optim import ESAM, MSAM, SAM, VSAM

torch.manual_seed(0)
NETWORK = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
X, Y = torch.randn(32, 8), torch.randint(0, 3, (32,))
MEMBERS = {
    "sam": (SAM, {}),
    "part": (VSAM, {"interval": 1}),
    "ahead": (MSAM, {"momentum": 0.9}),
    "selected": (ESAM, {}),
}


class Doubled(nn.Module):
    """A parametrization that counts how often it is evaluated."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, weight):
        self.calls += 1
        return weight * 2.0


def autocast():
    return torch.autocast("cpu", dtype=torch.bfloat16)


def trained(kind, around_step, around_forward, steps=6, network=NETWORK, **options):
    model = copy.deepcopy(network)
    optimizer = kind(model.parameters(), torch.optim.SGD, model=model, lr=0.1, rho=0.5, **options)

    def closure(rows=slice(None), backward=True):
        optimizer.zero_grad()
        with around_forward():
            losses = F.cross_entropy(model(X[rows]), Y[rows], reduction="none")
        if backward:
            losses.mean().backward()
        return (losses.mean(), losses.detach()) if optimizer.method.needs_row_losses else losses.mean()

    for _ in range(steps):
        with around_step():
            optimizer.step(closure, batch_size=32)
    return model, optimizer


@pytest.mark.parametrize(("kind", "options"), MEMBERS.values(), ids=MEMBERS)
def test_autocast_around_the_step_is_autocast_around_each_forward_pass(kind, options):
    outside, first = trained(kind, autocast, nullcontext, **options)
    inside, second = trained(kind, nullcontext, autocast, **options)
    for a, b in zip(outside.parameters(), inside.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-3)
    assert first.statistics()["psf_norm"] == pytest.approx(second.statistics()["psf_norm"], rel=0.1, nan_ok=True)


def test_what_is_evaluated_after_a_step_sees_the_weights_as_they_are():
    with autocast():
        model, _ = trained(SAM, nullcontext, nullcontext, steps=1)
        after = model(X)
    with autocast():
        assert torch.equal(after, model(X))


@pytest.mark.parametrize(("kind", "options"), [(SAM, {}), (VSAM, {"interval": 1})])
def test_cached_parametrizations_are_computed_anew_in_each_pass(kind, options):
    network = nn.Sequential(nn.Linear(8, 3))
    parametrize.register_parametrization(network[0], "weight", Doubled())
    cached, optimizer = trained(kind, parametrize.cached, nullcontext, network=network, **options)
    plain, reference = trained(kind, nullcontext, nullcontext, network=network, **options)
    assert all(torch.equal(a, b) for a, b in zip(cached.parameters(), plain.parameters(), strict=True))
    assert optimizer.statistics()["psf_norm"] == reference.statistics()["psf_norm"] > 0


@pytest.mark.parametrize(("kind", "options"), [(SAM, {}), (VSAM, {"interval": 1})])
def test_no_parametrization_is_evaluated_outside_of_a_pass(kind, options):
    network = nn.Sequential(nn.Linear(8, 3))
    parametrize.register_parametrization(network[0], "weight", Doubled())
    before = network[0].parametrizations.weight[0].calls
    model, optimizer = trained(kind, nullcontext, nullcontext, network=network, **options)
    assert model[0].parametrizations.weight[0].calls - before == optimizer.forwards


class Stale(torch.autograd.Function):
    """An older value of a tensor, with the gradient of the present one."""

    @staticmethod
    def forward(ctx, present, older):
        return older.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


class Hoarder(nn.Module):
    """Computes with a copy of its weight that it made when it was asked for the first time."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 8))
        self.copy = None

    def forward(self, x):
        if self.copy is None:
            self.copy = self.weight.detach().clone()
        return F.linear(x, Stale.apply(self.weight, self.copy))


@pytest.mark.parametrize(("check_every", "steps"), [(1, 1), (1000, 3)])
@pytest.mark.parametrize(("network", "told"), [(Hoarder(), 1), (NETWORK, 0)], ids=["hoarder", "plain"])
def test_a_second_pass_that_saw_the_first_weights_is_named_once(caplog, network, told, check_every, steps):
    with caplog.at_level(logging.WARNING, "qat_vsam.optim"):
        _, optimizer = trained(SAM, nullcontext, nullcontext, steps, network, check_every=check_every)
        optimizer.statistics()
    assert [r.message.startswith("second pass: got the loss and gradients of the first") for r in caplog.records] == (
        [True] * told
    )


def test_nothing_is_named_where_nothing_is_displaced(caplog):
    with caplog.at_level(logging.WARNING, "qat_vsam.optim"):
        model = nn.Linear(8, 3)
        optimizer = SAM(model.parameters(), torch.optim.SGD, model=model, lr=0.1)

        def closure():
            optimizer.zero_grad()
            loss = model(X).sum() * 0.0
            loss.backward()
            return loss

        optimizer.step(closure)
    assert not caplog.records
