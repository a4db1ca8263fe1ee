"""Direction and length of the displacement, and what it leaves untouched."""

import pytest
import torch
from torch import nn

from qat_vsam.errors import ConfigError, InputError
from qat_vsam.optim import (
    S2SAM,
    SAM,
    VSAM,
    Lookahead,
    LossBound,
    Perturbation,
    PreviousGradient,
    SharpnessAware,
)
from qat_vsam.optim.family.vsam import RHO


class OffsetLinear(nn.Linear):
    """A layer with a coarse weight quantizer (grid 1/2, straight-through) and an offset behind it."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.weight_offset = None
        self.seen = []

    def forward(self, x):
        quantized = self.weight + ((self.weight * 2).round() / 2 - self.weight).detach()
        used = quantized if self.weight_offset is None else quantized + self.weight_offset
        self.seen.append((self.weight.detach().clone(), used.detach().clone()))
        return nn.functional.linear(x, used, self.bias)


def test_the_displacement_on_a_quadratic_is_exact():
    curvature = torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    w = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    start, rho = w.detach().clone(), 0.3
    optimizer = SAM([w], torch.optim.SGD, lr=1.0, rho=rho)
    seen = []

    def closure():
        optimizer.zero_grad()
        seen.append(w.detach().clone())
        loss = 0.5 * w @ curvature @ w
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    g = curvature @ start
    e = rho * g / g.norm()
    torch.testing.assert_close(seen[1] - seen[0], e, rtol=0, atol=1e-12)
    torch.testing.assert_close(w.detach(), start - curvature @ (start + e), rtol=0, atol=1e-12)
    torch.testing.assert_close(loss, 0.5 * start @ curvature @ start, rtol=0, atol=1e-12)


def ascent(optimizer, parameters, loss_of):
    """How far each parameter stood from its value in the second pass of one step, and the gradients at w."""
    seen, gradients = [], []

    def closure():
        optimizer.zero_grad()
        seen.append([p.detach().clone() for p in parameters])
        loss = loss_of()
        loss.backward()
        gradients.append([None if p.grad is None else p.grad.clone() for p in parameters])
        return loss

    optimizer.step(closure)
    return [b - a for a, b in zip(*seen[:2], strict=True)], gradients[0]


def test_one_norm_over_all_groups_scales_a_radius_of_each_group():
    a, b = (nn.Parameter(torch.randn(4, dtype=torch.float64)) for _ in range(2))
    optimizer = SAM([{"params": [a], "rho": 0.1}, {"params": [b]}], torch.optim.SGD, lr=0.0, rho=0.4)
    moved, (g_a, g_b) = ascent(optimizer, [a, b], lambda: (a**2).sum() + (b**4).sum())
    norm = (g_a.norm() ** 2 + g_b.norm() ** 2).sqrt()
    torch.testing.assert_close(moved[0], 0.1 * g_a / norm)
    torch.testing.assert_close(moved[1], 0.4 * g_b / norm)


@pytest.mark.parametrize(
    ("roles", "moves"), [(("weight",), [True, False, True]), (("weight", "norm"), [True, True, True])]
)
def test_with_roles_only_the_named_ones_and_groups_without_role_move(roles, moves):
    weight, norm, free = (nn.Parameter(torch.randn(3)) for _ in range(3))
    groups = [
        {"params": [weight], "role": "weight"},
        {"params": [norm], "role": "norm"},
        {"params": [free]},
    ]
    optimizer = SAM(groups, torch.optim.SGD, lr=0.1, rho=0.1, perturbed_roles=roles)
    moved, _ = ascent(optimizer, [weight, norm, free], lambda: (weight**2 * norm**2 + free**2).sum())
    assert [bool((m != 0).any()) for m in moved] == moves


def test_a_zero_gradient_moves_nothing_and_stays_finite():
    w = nn.Parameter(torch.randn(3))
    start = w.detach().clone()
    optimizer = SAM([w], torch.optim.SGD, lr=0.1)
    moved, _ = ascent(optimizer, [w], lambda: (w * 0).sum())
    assert not moved[0].any()
    assert torch.equal(w.detach(), start)


def test_half_precision_weights_are_displaced_by_a_norm_that_does_not_overflow():
    w = nn.Parameter(torch.full((4,), 1.0, dtype=torch.float16))
    optimizer = SAM([w], torch.optim.SGD, lr=0.0, rho=1.0)
    moved, _ = ascent(optimizer, [w], lambda: (w * 30_000).sum())
    torch.testing.assert_close(moved[0], torch.full((4,), 0.5, dtype=torch.float16))


def test_behind_the_quantizer_the_latent_weight_never_moves_and_the_used_one_by_rho():
    torch.manual_seed(0)
    model = nn.Sequential(OffsetLinear(4, 6), nn.Tanh(), OffsetLinear(6, 3)).double()
    x, y = torch.randn(10, 4, dtype=torch.float64), torch.randint(3, (10,))
    weights = [model[0].weight, model[2].weight]
    optimizer = SAM(weights, torch.optim.SGD, model=model, perturbation="post_quantizer", rho=0.3, lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    optimizer.step(closure)
    displaced = []
    for layer in (model[0], model[2]):
        (latent_at_w, used_at_w), (latent_at_e, used_at_e) = layer.seen
        assert torch.equal(latent_at_w, latent_at_e)
        assert layer.weight_offset is None
        displaced.append(used_at_e - used_at_w)
    total = torch.cat([d.flatten() for d in displaced])
    assert float(total.norm()) == pytest.approx(0.3, abs=1e-12)
    # The first pass must have been the network's own: an offset of zeros changes nothing.
    assert torch.equal(model[0].seen[0][1], (model[0].seen[0][0] * 2).round() / 2)


def test_behind_the_quantizer_equals_euclidean_where_nothing_is_rounded():
    class Plain(OffsetLinear):
        def forward(self, x):
            used = self.weight if self.weight_offset is None else self.weight + self.weight_offset
            return nn.functional.linear(x, used)

    x, y = torch.randn(10, 4, dtype=torch.float64), torch.randint(3, (10,))
    results = []
    for perturbation in ("euclidean", "post_quantizer"):
        torch.manual_seed(0)
        layer = Plain(4, 3).double()
        options = {"model": layer, "perturbation": perturbation, "rho": 0.2, "lr": 0.1}
        optimizer = SAM([layer.weight], torch.optim.SGD, **options)

        def closure(optimizer=optimizer, layer=layer):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(layer(x), y)
            loss.backward()
            return loss

        for _ in range(5):
            optimizer.step(closure)
        results.append(layer.weight.detach())
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("model", [None, nn.Linear(2, 2)])
def test_post_quantizer_without_quantized_layers_is_refused(model):
    parameters = [nn.Parameter(torch.zeros(2))] if model is None else model.parameters()
    with pytest.raises(InputError, match=r"^perturbation: got"):
        SAM(parameters, torch.optim.SGD, model=model, perturbation="post_quantizer", lr=0.1)


def test_unknown_names_and_roles_are_refused_with_advice():
    w = nn.Parameter(torch.zeros(2))
    with pytest.raises(ConfigError, match="did you mean euclidean"):
        SAM([w], torch.optim.SGD, perturbation="euclidian", lr=0.1)
    with pytest.raises(InputError, match=r"^perturbed_roles: got"):
        SAM([{"params": [w], "role": "norm"}], torch.optim.SGD, lr=0.1)
    with pytest.raises(ConfigError, match=r"^rho: got"):
        SAM([w], torch.optim.SGD, lr=0.1, rho=-1.0)


def test_a_parameter_without_gradient_in_the_step_before_is_not_displaced_along_an_older_one():
    always, at_times = (nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(2))
    optimizer = S2SAM([always, at_times], torch.optim.SGD, lr=0.0, rho=0.5)
    stood = []
    for used in (True, False, True):

        def closure(used=used):
            optimizer.zero_grad()
            stood.append([(p.detach() - 1).norm().item() for p in (always, at_times)])
            loss = (always**2).sum() + ((at_times**2).sum() if used else 0.0)
            loss.backward()
            return loss

        optimizer.step(closure)
    assert stood[0] == [0.0, 0.0]
    assert stood[1] == pytest.approx([0.5 / 2**0.5] * 2)
    assert stood[2] == pytest.approx([0.5, 0.0])


def test_the_default_radius_of_vsam_asks_nothing_of_the_base_optimizer():
    class Plain(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {})

        def step(self, closure=None):
            return None

    w = nn.Parameter(torch.ones(2))
    assert {VSAM([w], base).param_groups[0]["rho"] for base in (Plain, torch.optim.AdamW)} == {RHO}


@pytest.mark.parametrize(
    ("loss", "gradient", "radius"),
    [
        (1.0, (0.6, 0.8), 0.3),
        (1.0, (3.0, 4.0), 0.14),  # sqrt(1 + 5 r) is, to first order, 1.35
        (0.25, (3.0, 4.0), 0.07),
        (0.0, (3.0, 4.0), 0.0),
        (1e6, (0.0, 1e-3), 0.3),
    ],
)
def test_vsams_radius_is_as_large_as_the_loss_allows_though_a_larger_one_is_given(loss, gradient, radius):
    w = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = VSAM([w], torch.optim.SGD, lr=0.1, rho=0.3, interval=1)
    seen = []

    def closure(rows=slice(None)):
        seen.append(w.detach().clone())
        w.grad = torch.tensor(gradient, dtype=torch.float64)
        return torch.tensor(loss, dtype=torch.float64)

    optimizer.step(closure, batch_size=8)
    direction = torch.tensor(gradient, dtype=torch.float64)
    torch.testing.assert_close(seen[1], radius * direction / direction.norm(), rtol=1e-9, atol=1e-12)


def test_without_a_largest_rise_the_radius_is_rho_whatever_the_loss():
    w = nn.Parameter(torch.zeros(1))
    optimizer = VSAM([w], torch.optim.SGD, lr=0.1, rho=0.5, largest_rise=None, interval=1)
    seen = []

    def closure(rows=slice(None)):
        seen.append(w.item())
        w.grad = torch.tensor([100.0])
        return torch.tensor(0.01)

    optimizer.step(closure, batch_size=8)
    assert seen[1] == pytest.approx(0.5)


def test_a_bound_by_the_loss_needs_one_before_the_displacement():
    w = nn.Parameter(torch.ones(1))
    perturbation = Perturbation(direction=PreviousGradient(), radius=LossBound())
    optimizer = SharpnessAware([w], torch.optim.SGD, lr=0.1, method=Lookahead(), perturbation=perturbation)

    def closure():
        optimizer.zero_grad()
        (w**2).sum().backward()
        return (w**2).sum()

    optimizer.step(closure)  # nothing is remembered yet, so nothing is displaced
    with pytest.raises(InputError, match=r"perturbation: got .* expected a gradient before e"):
        optimizer.step(closure)


def test_a_bound_of_zero_is_refused():
    with pytest.raises(ConfigError, match=r"largest_rise: got 0; expected a rise of the root of the loss > 0"):
        LossBound(0)
