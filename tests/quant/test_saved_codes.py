"""The backward pass keeps codes of one byte where a float network keeps values of four, and computes the same."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from qat_vsam.models import build_model
from qat_vsam.quant import QuantSpec, calibrate, kernels, prepare, quant_layers, set_compiled
from qat_vsam.quant import layers as layers_module


@pytest.fixture
def all_sizes(monkeypatch):
    """Codes of small tensors are kept too."""
    monkeypatch.setattr(kernels, "WORTH_KEEPING", 0)


def quantized(model, x, bits, method="lsq"):
    model = copy.deepcopy(model)
    prepare(model, QuantSpec.preset(bits, method=method), sample=x[:2])
    calibrate(model, [x])
    set_compiled(model, False)
    return model.train()


def bytes_kept(model, x, y):
    """What is allocated in the forward pass and not freed at its end, in bytes."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        loss = functional.cross_entropy(model(x), y)
    loss.backward()
    return sum(event.self_cpu_memory_usage for event in profiler.events())


def test_resnet_20_keeps_at_most_a_fifth_more_than_in_float():
    model = build_model("cifar_resnet20", seed=0).train()
    x, y = torch.randn(64, 3, 32, 32), torch.zeros(64, dtype=torch.int64)
    floats = bytes_kept(model, x, y)
    assert floats > 30 * x.numel()
    assert bytes_kept(quantized(model, x, "w4a4"), x, y) <= 1.2 * floats


def network(kind):
    torch.manual_seed(0)
    if kind == "linear":
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 4)), torch.randn(3, 5, 6)
    if kind == "transposed":
        body = nn.ConvTranspose2d(3, 4, 3, stride=2), nn.ReLU(), nn.ConvTranspose2d(4, 4, 3, groups=2)
        return nn.Sequential(*body), torch.randn(2, 3, 4, 4)
    padding = {"padding": 1, "padding_mode": "reflect" if kind == "reflect" else "zeros"}
    body = nn.Conv2d(3, 4, 3, **padding), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2, **padding)
    x = torch.randn(2, 3, 8, 8)
    return nn.Sequential(*body), x.to(memory_format=torch.channels_last) if kind == "channels_last" else x


@pytest.mark.usefixtures("all_sizes")
@pytest.mark.parametrize("kind", ["linear", "transposed", "zeros", "reflect", "channels_last"])
@pytest.mark.parametrize("bits", ["w2a2", "w8a8"])
@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("method", ["lsq", "lsq_plus"])
def test_the_gradients_are_those_of_kept_values(monkeypatch, kind, bits, amp, method):
    model, x = network(kind)
    model = quantized(model, x, bits, method)
    gradients = []
    for keeping in (layers_module.keeping_codes, lambda *tensors: nullcontext()):
        monkeypatch.setattr(layers_module, "keeping_codes", keeping)
        model.zero_grad()
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            y = model(leaf)
        y.square().mean().backward()
        gradients.append({"x": leaf.grad} | {name: p.grad for name, p in model.named_parameters()})
    for name, with_codes in gradients[0].items():
        # an offset has a gradient from clipped values alone
        assert with_codes.abs().sum() > 0 or name.endswith("offset")
        assert torch.equal(with_codes, gradients[1][name])


@pytest.mark.usefixtures("all_sizes")
def test_the_codes_of_a_weight_that_was_moved_are_not_taken_for_its_own():
    model, x = network("linear")
    model = quantized(model, x, "w4a4")
    layers = dict(quant_layers(model))
    layers["2"].weight_offset = torch.full_like(layers["2"].weight, 0.5)
    leaf = x.clone().requires_grad_()
    model[:3](leaf).sum().backward()
    by_hand = model[:2](x).detach().requires_grad_()
    x_hat = layers["2"].input_quantizer(by_hand)
    functional.linear(x_hat, layers["2"].quantized_weight().detach() + 0.5).sum().backward()
    other = x.clone().requires_grad_()
    model[:2](other).backward(by_hand.grad)
    assert torch.equal(leaf.grad, other.grad)
