"""The same trajectory as SAM and ASAM of the package pytorch_optimizer, recorded from its version 4.1.0 and live.

That package takes norms in float32 also of float64 gradients, hence the tolerance; and its ASAM has T = |w| on
all tensors, so that it is ours on networks without biases at eta = 0.
"""

import pytest
import torch
from torch import nn

from qat_vsam.optim import ASAM, SAM

STEPS = 40
SGD = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}
CASES = {"sam": ({"rho": 0.1}, True), "asam": ({"rho": 0.5}, False)}
# The weights after the last step.
RECORDED = {
    "sam": """
        0.2873073570 0.6170758537 0.8378504965 0.9406943155 0.7646344213 0.4535174642 -0.1132438106 -0.5706816239
        -0.9273201770 0.9903581663 0.8905434349 0.3887728566 0.1468106612 -0.2713505673 -0.3570101276 -0.0153733607
        -0.2578513899 -0.7393583636 -0.5742643127 -0.3377444505
    """,
    "asam": """
        0.1704850360 0.5113694127 0.7619308207 0.8444401167 0.7198644758 0.4681394691 -0.1914272814 -0.4447177619
        -0.6194579272 0.8088991065 0.6486617600 0.5648158423 0.5912849434 0.3226368052 -0.1939628274
    """,
}


def numbers(*shape, phase=0.0):
    """Numbers that look random and are the same on every machine."""
    count = torch.Size(shape).numel()
    return torch.sin(12.9898 * torch.arange(1, count + 1, dtype=torch.float64) + phase).reshape(shape)


def network(bias):
    model = nn.Sequential(nn.Linear(3, 3, bias=bias), nn.Tanh(), nn.Linear(3, 2, bias=bias)).double()
    with torch.no_grad():
        for k, parameter in enumerate(model.parameters()):
            parameter.copy_(numbers(*parameter.shape, phase=k))
    return model


def closure_of(model, optimizer):
    x, y = numbers(10, 3, phase=0.5), torch.arange(10) % 2

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return closure


def weights_of(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def ours(name):
    options, bias = CASES[name]
    model = network(bias)
    member, more = (SAM, {}) if name == "sam" else (ASAM, {"eta": 0.0})
    optimizer = member(model.parameters(), torch.optim.SGD, model=model, **options, **more, **SGD)
    for _ in range(STEPS):
        optimizer.step(closure_of(model, optimizer))
    return weights_of(model)


def theirs(name, package):
    options, bias = CASES[name]
    model = network(bias)
    optimizer = package.SAM(model.parameters(), torch.optim.SGD, adaptive=name == "asam", **options, **SGD)
    closure = closure_of(model, optimizer)
    for _ in range(STEPS):
        closure()
        optimizer.step(closure)
    return weights_of(model)


@pytest.mark.parametrize("name", CASES)
def test_the_recorded_trajectory_of_pytorch_optimizer_is_ours(name):
    recorded = torch.tensor([float(number) for number in RECORDED[name].split()], dtype=torch.float64)
    torch.testing.assert_close(ours(name), recorded, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", CASES)
def test_the_trajectory_of_an_installed_pytorch_optimizer_is_ours(name):
    package = pytest.importorskip("pytorch_optimizer")
    torch.testing.assert_close(ours(name), theirs(name, package), rtol=0, atol=1e-7)
