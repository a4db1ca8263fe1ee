"""Weights with one scale for each group of a row, from the grid to the exported files."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import qat_vsam as qv
from qat_vsam.errors import ConfigError
from qat_vsam.export import integer_model, load_packed
from qat_vsam.quant import QuantLinear, QuantSpec, TensorSpec, calibrate, param_groups, prepare, quant_layers

METHODS = ("lsq", "dorefa", "minmax", "percentile", "mse")


def layer(bits: int, group_size: int, method: str, rows: int = 3, groups: int = 2, seed: int = 0) -> QuantLinear:
    torch.manual_seed(seed)
    spec = TensorSpec(bits=bits, signed=True, granularity="per_group", method=method, group_size=group_size)
    return QuantLinear(groups * group_size, rows, weight_spec=spec)


@settings(max_examples=100, deadline=None)
@given(
    bits=st.integers(1, 8),
    group_size=st.sampled_from([1, 3, 8]),
    method=st.sampled_from(METHODS),
    seed=st.integers(0, 1000),
)
def test_every_group_is_quantized_as_if_it_were_alone(bits, group_size, method, seed):
    if method == "dorefa" and bits == 8:
        return
    grouped = layer(bits, group_size, method, seed=seed)
    quantizer = grouped.weight_quantizer
    assert quantizer.step().shape == (6,)
    by_row = TensorSpec(bits=bits, signed=True, granularity="per_channel", method=method)
    alone = QuantLinear(group_size, 6, weight_spec=by_row)
    with torch.no_grad():
        alone.weight.copy_(grouped.weight.reshape(6, group_size))
    alone.initialise_weight_quantizer()
    w_hat, codes = grouped.quantized_weight(), grouped.weight_codes()
    assert torch.equal(w_hat.reshape(6, group_size), alone.quantized_weight())
    assert torch.equal(codes.reshape(6, group_size), alone.weight_codes())
    assert torch.equal(w_hat, quantizer.dequantize(codes))
    assert torch.equal(grouped.weight_step_size().reshape(6, -1)[:, 0], quantizer.step())
    gradient = torch.randn_like(w_hat)
    w_hat.backward(gradient)
    alone.quantized_weight().backward(gradient.reshape(6, group_size))
    assert torch.equal(grouped.weight.grad.reshape(6, group_size), alone.weight.grad)
    for one, other in zip(quantizer.parameters(), alone.weight_quantizer.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def network() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    body = [nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 8, 2), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4)]
    return nn.Sequential(*body, *head), torch.randn(64, 4, 8, 8)


@pytest.mark.parametrize("bits", ["w4", "w4a8", "w2a4"])
def test_from_training_to_the_files(bits, tmp_path):
    model, x = network()
    y = torch.randint(4, (64,), generator=torch.Generator().manual_seed(0))
    summary = prepare(model, QuantSpec.preset(bits, group_size=4), sample=x)
    assert "per group of 4" in str(summary)
    calibrate(model, [x])
    assert dict(quant_layers(model))["0"].weight_quantizer.granularity == "per_channel"
    assert dict(quant_layers(model))["3"].weight_quantizer.step().numel() == 8 * 8
    optimizer = torch.optim.SGD(param_groups(model), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model.train()(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.eval()
    torch.testing.assert_close(integer_model(model)(x), model(x), rtol=1e-3, atol=1e-4)
    for name, kind in (("model.safetensors", "packed"), ("model.onnx", "onnx")):
        proof = qv.export(model, tmp_path / name, format=kind, sample=x)
        assert proof.passed
        assert proof.weight_codes_equal
    loaded = load_packed(tmp_path / "model.safetensors", network()[0])
    assert torch.equal(loaded(x), integer_model(model)(x))


def test_the_gradient_of_a_groups_step_size_is_scaled_by_the_size_of_the_group():
    linear = layer(4, 8, "lsq")
    linear.quantized_weight().sum().backward()
    s = linear.weight_quantizer.step().detach()[:, None]
    v = linear.weight.detach().reshape(6, 8) / s
    towards_s = torch.where(v > 7, 7.0, torch.where(v < -8, -8.0, v.round() - v)).sum(1)
    torch.testing.assert_close(linear.weight_quantizer.step_size.grad, towards_s / (8 * 7) ** 0.5)


def test_sums_of_scaled_weights_are_taken_in_the_dtype_of_their_scales():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4096), nn.Linear(4096, 8), nn.Linear(8, 2))
    prepare(model, QuantSpec.preset("w8a8", group_size=8))
    calibrate(model, [torch.randn(4, 4)])
    assert [layer.accumulator() for layer in integer_model(model)] == [torch.float32] * 3


def test_groups_fit_better_than_rows():
    torch.manual_seed(0)
    weight = torch.randn(16, 128) * torch.logspace(-1, 1, 4).repeat_interleave(32)
    errors = []
    for granularity in ("per_channel", "per_group"):
        spec = TensorSpec(bits=4, signed=True, granularity=granularity, group_size=32)
        linear = QuantLinear(128, 16, weight_spec=spec)
        with torch.no_grad():
            linear.weight.copy_(weight)
        linear.initialise_weight_quantizer()
        errors.append((linear.quantized_weight() - weight).square().mean())
    assert errors[1] < 0.5 * errors[0]


def test_a_size_that_does_not_divide_a_row_is_refused_with_one_that_does():
    model, _ = network()
    before = list(model.modules())
    message = r"3: group_size: got 5; expected a divisor of the 32 weights of an output channel; use 4"
    with pytest.raises(ConfigError, match=message):
        prepare(model, QuantSpec.preset("w4a8", group_size=5))
    assert list(model.modules()) == before
    with pytest.raises(ConfigError, match=r"group_size: got 0; expected a positive integer"):
        TensorSpec(4, True, "per_group", group_size=0)
    with pytest.raises(ConfigError, match=r"activation\.granularity: got per_group; expected per_tensor"):
        QuantSpec(TensorSpec(4, True), TensorSpec(4, granularity="per_group"))
