"""Subclasses with a forward of their own are quantized around it, or listed with the reason."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

import qat_vsam as qv
from qat_vsam.export import integer_model
from qat_vsam.quant import QuantSpec, calibrate, prepare, quant_layers, set_quantizers_enabled


class SameConv(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(F.pad(x, (0, 1, 1, 0)), weight=self.weight, bias=self.bias)


class StandardisedConv(nn.Conv2d):
    def __init__(self, *args):
        super().__init__(*args)
        self.gain = nn.Parameter(torch.full((self.out_channels, 1, 1, 1), 0.3))

    def forward(self, x):
        deviation, mean = torch.std_mean(self.weight, (1, 2, 3), keepdim=True)
        return F.conv2d(x, self.gain * (self.weight - mean) / deviation, self.bias, self.stride, self.padding)


class CastingLinear(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype), self.bias)


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(
        SameConv(3, 4, 2),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        StandardisedConv(4, 6, 3),
        nn.ReLU(),
        nn.Flatten(),
        CastingLinear(6 * 36, 5),
    ).eval()


def prepared(bits="w4a4"):
    model, x = small_net(), torch.rand(8, 3, 8, 8)
    prepare(model, QuantSpec.preset(bits))
    calibrate(model, [x])
    return model, x


def test_with_quantizers_off_nothing_is_changed():
    model, x = small_net(), torch.rand(8, 3, 8, 8)
    expected = model(x)
    summary = prepare(model, QuantSpec.preset("w4a4"))
    assert [row.name for row in summary.quantized] == ["0", "3", "6"]
    set_quantizers_enabled(model, False)
    assert torch.equal(model(x), expected)


def test_the_forward_is_that_of_the_class_on_a_quantized_input_and_weight():
    model, x = prepared()
    layer = model[0]
    expected = F.conv2d(F.pad(layer.input_quantizer(x), (0, 1, 1, 0)), layer.weight_quantizer(layer.weight), layer.bias)
    assert torch.equal(layer(x), expected)
    assert not torch.equal(layer(x), SameConv.forward(layer.to_float(), x))


def test_a_standardised_weight_lies_on_the_grid_after_it_was_standardised():
    model, _ = prepared()
    layer = model[3]
    deviation, mean = torch.std_mean(layer.weight, (1, 2, 3), keepdim=True)
    used = (layer.gain * (layer.weight - mean) / deviation).detach()
    codes = layer.weight_codes()
    step = layer.weight_quantizer.step().reshape(-1, 1, 1, 1).detach()
    assert codes.abs().max() <= 8
    assert ((step * codes - used).abs() <= step / 2 + 1e-6)[codes.abs() < 7].all()
    with torch.no_grad():
        layer.weight.mul_(3).add_(1)  # what standardising takes away
    assert torch.equal(layer.weight_codes(), codes)


def test_every_parameter_gets_a_gradient_and_the_offset_that_at_the_quantized_weight():
    model, x = prepared()
    layer = model[3]
    layer.weight_offset = torch.zeros_like(layer.weight, requires_grad=True)
    model(x).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0 or name.endswith("bias"), name
    assert layer.weight_offset.grad.abs().sum() > 0


def test_copies_and_pickles_compute_the_same_and_the_float_layer_comes_back():
    model, x = prepared()
    expected = model(x)
    assert torch.equal(copy.deepcopy(model)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), expected)
    back = model[0].to_float()
    assert type(back) is SameConv
    assert back.weight is model[0].weight
    fresh = small_net()
    prepare(fresh, QuantSpec.preset("w4a4"))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), expected)


@pytest.mark.parametrize("bits", ["w4a4", "w8a8", "w2"])
def test_the_integer_model_computes_the_same(bits):
    model, x = prepared(bits)
    integers = integer_model(model)
    torch.testing.assert_close(integers(x), model(x), rtol=1e-4, atol=1e-5)
    assert not any(key.endswith(("gain", "3.weight")) for key in integers.state_dict())


@pytest.mark.parametrize("form", ["packed", "onnx"])
def test_exports_are_proven(form, tmp_path):
    model, x = prepared()
    proof = qv.export(model, tmp_path / "model", format=form, sample=x, minimum_inputs=64)
    assert proof.passed
    assert proof.weight_codes_equal
    assert proof.activation_codes_equal > 0.999


def test_a_compiled_model_computes_the_same():
    model, x = prepared()
    compiled = torch.compile(model, backend="eager")
    assert torch.equal(compiled(x), model(x))


class Twice(nn.Linear):
    def forward(self, x):
        return F.linear(F.linear(x, self.weight), self.weight)


class Behind(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight).relu()


class Transposed(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight[:1])


class Failing(nn.Linear):
    def forward(self, x):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Twice, "calls linear 2 times"),
        (Behind, "changes what linear gives"),
        (Transposed, "computes with a weight of another shape"),
        (Failing, "fails on zeros (NotImplementedError)"),
    ],
)
def test_a_forward_that_does_more_is_listed_with_the_reason(kind, reason):
    model = nn.Sequential(nn.Linear(4, 4), kind(4, 4), nn.Linear(4, 4))
    rows = {row.name: row.skipped for row in prepare(model, QuantSpec.preset("w4a4"))}
    assert rows == {"0": "", "1": f"a subclass of Linear whose forward {reason}", "2": ""}
    assert type(model[1]) is kind
    assert len(list(quant_layers(model))) == 2
