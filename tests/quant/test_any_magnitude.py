"""Quantizers know no absolute scale: a net whose weights are 2^-k as large has the same codes."""

import pytest
import torch
from torch import nn

from qat_vsam.export import export
from qat_vsam.quant import QuantSpec, calibrate, lsq_quantize, prepare

X = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def quantized(factor, bits="w4a8", **options):
    """A convolution of small weights between two others; a norm behind it makes its magnitude meaningless."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(8, momentum=None)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, bias=False), norm, nn.ReLU())
    model.extend([nn.Flatten(), nn.Linear(128, 3)])
    with torch.no_grad():
        model.train()(X)
        norm.eps = 0.0
        model[2].weight.mul_(factor)
        norm.running_mean.mul_(factor)
        norm.running_var.mul_(factor**2)
    prepare(model.eval(), QuantSpec.preset(bits, **options))
    calibrate(model, [X])
    return model


@pytest.mark.parametrize("exponent", [-24, -32, -44])
@pytest.mark.parametrize("method", ["lsq", "minmax", "percentile", "mse"])
def test_weights_of_any_magnitude_have_the_codes_of_their_shape(method, exponent):
    plain, small = (quantized(factor, method=method) for factor in (1.0, 2.0**exponent))
    assert torch.equal(plain[2].weight_codes(), small[2].weight_codes())
    assert torch.allclose(plain(X), small(X), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{"balanced": True}, {"narrow": True}, {"method": "lsq_plus"}])
def test_grids_of_other_kinds_too(options):
    plain, small = (quantized(factor, "w2a8", **options) for factor in (1.0, 2.0**-40))
    assert torch.equal(plain[2].weight_codes(), small[2].weight_codes())


@pytest.mark.parametrize("factor", [2.0**-32, 2.0**-44])
def test_inputs_of_any_magnitude_have_the_codes_of_their_shape(factor):
    for method in ("lsq", "lsq_plus", "pact", "minmax"):
        codes = []
        for size in (1.0, factor):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
            prepare(model, QuantSpec.preset("w4a4", method=method, first_last_bits=4))
            x = torch.randn(64, 4) * size
            calibrate(model, [x])
            codes.append(model[0].input_quantizer.codes(x))
        assert torch.equal(*codes), method


@pytest.mark.parametrize("format", ["packed", "onnx"])
def test_an_artifact_holds_them(format, tmp_path):
    model = quantized(2.0**-30)
    assert export(model, tmp_path / "model", format=format, sample=X, minimum_inputs=16).passed


def test_a_step_size_at_the_floor_gives_finite_gradients():
    x, step = torch.tensor([-1e8, -1e-3, 0.0, 1e-3, 1e8], requires_grad=True), torch.zeros(1, requires_grad=True)
    lsq_quantize(x, step.reshape(()), -8, 7).sum().backward()
    assert x.grad.isfinite().all()
    assert step.grad.isfinite().all()
