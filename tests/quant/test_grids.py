"""Balanced grids, steps that are powers of two, and surrogate gradients, from the spec to the exported file."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import qat_vsam as qv
from qat_vsam.errors import CheckpointError, ConfigError
from qat_vsam.export import integer_model, load_packed
from qat_vsam.quant import QuantSpec, TensorSpec, TensorStatistics, make_quantizer, quant_layers


def weight_quantizer(x: torch.Tensor, **options) -> qv.quant.Quantizer:
    spec = TensorSpec(**{"bits": 2, "signed": True, "granularity": "per_channel"} | options)
    quantizer = make_quantizer(spec, "weight", len(x))
    statistics = TensorStatistics(per_channel=True)
    statistics.update(x)
    quantizer.initialise(statistics)
    return quantizer


def prepared(**options) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    qv.prepare(model, QuantSpec.preset("w2a4", **options))
    x = torch.randn(32, 3, 8, 8)
    qv.calibrate(model, [x])
    return model.eval(), x


@pytest.mark.parametrize("method", ["lsq", "minmax"])
@pytest.mark.parametrize("bits", [2, 3, 7])
def test_a_balanced_grid_has_odd_codes_half_a_step_apart_from_zero(bits, method):
    x = torch.linspace(-1, 1, 2000).reshape(1, -1).repeat(4, 1)
    quantizer = weight_quantizer(x, bits=bits, method=method, balanced=True)
    codes = quantizer.codes(x)
    assert set(codes.unique().tolist()) <= set(range(1 - 2**bits, 2**bits, 2))
    assert len(codes.unique()) == 2**bits
    assert torch.equal(quantizer(x), quantizer.dequantize(codes))
    assert torch.equal(2 * quantizer.scale(), quantizer.step())


def test_a_balanced_grid_fits_two_bits_better_than_the_usual_one():
    x = torch.randn(4, 2000)
    errors = [(weight_quantizer(x, balanced=balanced)(x) - x).square().mean() for balanced in (True, False)]
    assert errors[0] < 0.85 * errors[1]


@pytest.mark.parametrize("method", ["lsq", "minmax"])
def test_steps_are_powers_of_two_and_learned_ones_move_through_the_rounding(method):
    x = torch.randn(4, 500)
    quantizer = weight_quantizer(x, bits=4, method=method, power_of_two=True)
    logarithms = quantizer.step().log2()
    assert torch.equal(logarithms, logarithms.round())
    assert torch.equal(quantizer(x), quantizer.dequantize(quantizer.codes(x)))
    if method == "lsq":
        quantizer(x).sum().backward()
        assert torch.all(quantizer.step_size.grad != 0)


@pytest.mark.parametrize("name", ["ewgs", "stable"])
def test_a_surrogate_changes_gradients_of_the_model_and_no_value(name):
    gradients = []
    for options in ({}, {"surrogate": name}):
        model, x = prepared(**options)
        y = model(x)
        y.square().sum().backward()
        gradients.append((y.detach(), model[3].weight.grad, model[3].weight_quantizer.step_size.grad))
    (plain, straight, step), (y, scaled, step_too) = gradients
    assert torch.equal(plain, y)
    assert not torch.equal(straight, scaled)
    assert torch.nn.functional.cosine_similarity(step, step_too, dim=0) > 0.5


@pytest.mark.parametrize(
    "options",
    [
        {"balanced": True},
        {"power_of_two": True},
        {"balanced": True, "power_of_two": True},
        {"method": "minmax", "balanced": True},
    ],
)
def test_exports_compute_what_the_model_computes(options, tmp_path):
    model, x = prepared(**options)
    expected = model(x)
    torch.testing.assert_close(integer_model(model)(x), expected, rtol=1e-4, atol=1e-5)
    qv.export(model, tmp_path / "model.safetensors", format="packed", sample=x)
    float_model, _ = prepared(**options)
    loaded = load_packed(tmp_path / "model.safetensors", float_model)
    assert torch.equal(loaded(x), integer_model(model)(x))
    proof = qv.export(model, tmp_path / "model.onnx", format="onnx", sample=x)
    assert proof.argmax_agreement == 1


def test_a_first_and_last_layer_of_8_bits_have_the_usual_grid():
    model, _ = prepared(balanced=True)
    found = {
        name: (layer.weight_quantizer.bits, layer.weight_quantizer.spec.balanced) for name, layer in quant_layers(model)
    }
    assert found == {"0": (8, False), "3": (2, True), "7": (8, False)}


@pytest.mark.parametrize(
    "other", [{"balanced": True}, {"power_of_two": True}, {"balanced": True, "power_of_two": True}]
)
def test_the_state_of_another_grid_is_refused(other):
    x = torch.randn(3, 5)
    with pytest.raises(CheckpointError, match=r"quantizer state: got 2 bits; expected 2 bits (balanced|in powers)"):
        weight_quantizer(x, **other).load_state_dict(weight_quantizer(x).state_dict())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TensorSpec(8, True, balanced=True), "balanced: got true with bits=8, .*expected 2 to 7 bits"),
        (lambda: TensorSpec(2, None, balanced=True), "balanced: got true with bits=2, signed=None"),
        (lambda: TensorSpec(2, True, balanced=True, narrow=True), "narrow=True"),
        (lambda: TensorSpec(2, True, balanced="yes"), "balanced: got yes; expected true or false"),
        (lambda: TensorSpec(2, True, power_of_two=1.5), "power_of_two: got 1.5; expected true or false"),
        (lambda: TensorSpec(2, surrogate="ewsg"), "surrogate: got ewsg; .*did you mean ewgs"),
        (lambda: TensorSpec(2, surrogate="ewgs", surrogate_strength=2.0), "expected a number in \\(0, 2\\)"),
        (lambda: TensorSpec(2, surrogate="stable", surrogate_strength=0.23), "expected a number in \\(0, 0.225\\)"),
        (lambda: TensorSpec(2, surrogate_strength=0.1), "expected none for the straight-through gradient"),
        (
            lambda: QuantSpec(TensorSpec(4), TensorSpec(4, True, balanced=True)),
            "activation.balanced: got True; expected false; leave it to weights",
        ),
    ],
)
def test_a_grid_that_cannot_be_is_one_clear_line(make, message):
    with pytest.raises(ConfigError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
