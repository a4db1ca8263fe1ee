"""The integer model computes on integers, exactly, and equals the fake-quantized model."""

import copy

import pytest
import torch
from torch import nn

import qat_vsam as qv
from qat_vsam.errors import InputError
from qat_vsam.export import IntegerConv, IntegerLinear, integer_model
from qat_vsam.export.grid import Grid
from qat_vsam.export.integer_layers import IntegerLayer
from qat_vsam.quant import quant_layers


def codes_of(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Codes that enter each layer, by hooks on either kind of model."""
    seen: dict[str, torch.Tensor] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, IntegerLayer):
            layer.register_forward_pre_hook(lambda m, i, name=name: seen.update({name: m.activation_codes(i[0])}))
    for name, layer in quant_layers(model):
        layer.register_forward_pre_hook(lambda m, i, name=name: seen.update({name: m.input_quantizer.codes(i[0])}))
    model(x)
    return seen


@pytest.mark.parametrize("bits", ["w8a8", "w4a8", "w4a4", "w3a3", "w2a2", "w1a2", "w2a1", "w1a1"])
def test_it_equals_the_fake_quantized_model(bits, quantize, x) -> None:
    model = quantize(bits)
    integers = integer_model(model)
    expected, actual = codes_of(model, x), codes_of(integers, x)
    assert expected.keys() == actual.keys()
    assert len(expected) == 5
    equal = sum(int((expected[name].short() == actual[name].short()).sum()) for name in expected)
    assert equal / sum(codes.numel() for codes in expected.values()) >= 0.999
    reference = model(x)
    assert (integers(x) - reference).abs().mean() <= 1e-3 * reference.std(dim=0).mean()


def test_one_layer_equals_over_a_thousand_seeds() -> None:
    """With equal codes by construction, only the scaling rounds: a few float32 digits."""
    models = [nn.Sequential(nn.Linear(17, 3)) for _ in range(2, 9)]
    for bits, model in enumerate(models, start=2):
        qv.prepare(model, qv.QuantSpec.preset(f"w{bits}a{10 - bits}", first_last_bits=2))
    for seed in range(1000):
        generator = torch.Generator().manual_seed(seed)
        model = models[seed % 7].eval()
        with torch.no_grad():
            model[0].weight.copy_(torch.randn(3, 17, generator=generator))
            model[0].bias.copy_(torch.randn(3, generator=generator))
        x = torch.randn(8, 17, generator=generator)
        qv.calibrate(model, [x], method="lsq")
        torch.testing.assert_close(integer_model(model)(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seeds", [60, pytest.param(1000, marks=pytest.mark.nightly)])
def test_it_is_the_fake_quantized_net_bit_for_bit(seeds: int) -> None:
    """With steps that are powers of two and biases of few digits, no product and no sum is rounded on either side."""
    nets = {}
    for bits in ("w2a8", "w3a3", "w4a4", "w8a4", "w8a8"):
        layers = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 2, groups=4), nn.Flatten(), nn.Linear(36, 3)
        nets[bits] = nn.Sequential(*layers).eval()
        qv.prepare(nets[bits], qv.QuantSpec.preset(bits, power_of_two=True, first_last_bits=int(bits[1])))
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        model = list(nets.values())[seed % len(nets)]
        with torch.no_grad():
            for parameter in (p for i in (0, 2, 4) for p in (model[i].weight, model[i].bias)):
                parameter.copy_((torch.randn(parameter.shape, generator=generator) * 64).round() / 64)
        x = torch.randn(4, 3, 4, 4, generator=generator)
        qv.calibrate(model, [x], method="lsq")
        assert torch.equal(integer_model(model)(x), model(x)), seed


@pytest.mark.parametrize("accumulator", [torch.float32, torch.float64])
def test_accumulators_are_exact_integers(accumulator: torch.dtype) -> None:
    """Against a sum in 64-bit integers; float32 would lose the last digits of the larger layer."""
    inputs = 100 if accumulator == torch.float32 else 4001
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(100, 128, (4, inputs), generator=generator)
    one, grid = torch.tensor(1.0), Grid(8, 0, 255)
    layer = IntegerLinear(nn.Linear(inputs, 4), codes, one.expand(4), Grid(8, -128, 127), None, one, grid)
    assert layer.accumulator() == accumulator
    x = torch.randint(200, 256, (8, inputs), generator=generator)
    assert torch.equal(layer(x.double()).long(), x @ codes.T)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
def test_padding_modes_and_string_padding(mode: str, x) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding="same", padding_mode=mode))
    qv.prepare(model, qv.QuantSpec.preset("w4a4"))
    qv.calibrate(model, [x])
    integers = integer_model(model)
    assert isinstance(integers[0], IntegerConv)
    torch.testing.assert_close(integers(x), model.eval()(x), rtol=1e-5, atol=1e-5)


def test_weight_only_keeps_float_activations(quantize, x) -> None:
    model = quantize("w4")
    integers = integer_model(model)
    assert all(layer.activation_scale is None for layer in integers.modules() if isinstance(layer, IntegerLayer))
    torch.testing.assert_close(integers(x), model(x), rtol=1e-4, atol=1e-4)


def test_quantizers_switched_off_give_the_float_layer_back(quantize, x) -> None:
    from qat_vsam.quant import set_quantizers_enabled

    model = quantize("w4a4")
    set_quantizers_enabled(model, False)
    integers = integer_model(model)
    assert not any(isinstance(layer, IntegerLayer) for layer in integers.modules())
    assert torch.equal(integers(x), model(x))


def test_the_model_itself_is_not_touched(quantize, x) -> None:
    model = quantize("w4a4").train()
    before = copy.deepcopy(model.state_dict())
    integer_model(model)(x)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_pending_weight_offset_is_refused(quantize) -> None:
    model = quantize("w4a4")
    model.wide.weight_offset = torch.zeros_like(model.wide.weight)
    with pytest.raises(InputError, match=r"wide\.weight_offset"):
        integer_model(model)
