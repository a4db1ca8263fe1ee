"""A quantized layer is its float layer with two quantizers, and nothing else changes."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from qat_vsam.quant import QuantConv2d, QuantLinear, TensorSpec, TensorStatistics

WEIGHT = TensorSpec(4, signed=True, granularity="per_channel")
INPUT = TensorSpec(4)

FLOAT_LAYERS = {
    "plain": lambda: nn.Conv2d(4, 6, 3),
    "padding": lambda: nn.Conv2d(4, 6, 3, padding=1, stride=2, bias=False),
    "same": lambda: nn.Conv2d(4, 6, 3, padding="same"),
    "reflect": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
    "replicate": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="replicate"),
    "circular": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
    "depthwise": lambda: nn.Conv2d(4, 8, 3, groups=4),
    "dilated": lambda: nn.Conv2d(4, 6, 3, dilation=2),
    "linear": lambda: nn.Linear(9, 5),
    "linear without bias": lambda: nn.Linear(9, 5, bias=False),
}


def quantized(module):
    kind = QuantConv2d if isinstance(module, nn.Conv2d) else QuantLinear
    layer = kind.from_float(module, WEIGHT, INPUT)
    statistics = TensorStatistics()
    statistics.update(torch.rand(100))
    layer.input_quantizer.initialise(statistics)
    return layer


def input_of(module):
    return torch.rand(2, 4, 9, 9, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", FLOAT_LAYERS)
def test_computes_the_float_layer_on_quantized_weight_and_input(name):
    torch.manual_seed(0)
    module = FLOAT_LAYERS[name]()
    x = input_of(module)
    expected_off = module(x)
    layer = quantized(module)
    twin = copy.deepcopy(module)
    twin.weight.data = layer.quantized_weight().detach()
    assert torch.equal(layer(x), twin(layer.input_quantizer(x)))
    layer.weight_quantizer.enabled = layer.input_quantizer.enabled = False
    assert torch.equal(layer(x), expected_off)


@pytest.mark.parametrize("name", FLOAT_LAYERS)
def test_from_and_to_float_keep_the_parameters_and_the_configuration(name):
    module = FLOAT_LAYERS[name]().eval()
    module.note = "mine"
    calls = []
    handle = module.register_forward_hook(lambda *_: calls.append(1))
    layer = quantized(module)
    assert layer.weight is module.weight
    assert layer.bias is module.bias
    assert not layer.training
    assert layer.note == "mine"
    assert not list(module.children())
    layer(input_of(module))
    assert calls == [1]
    handle.remove()
    layer(input_of(module))
    assert calls == [1]
    back = layer.to_float()
    assert type(back) is type(module)
    assert back.weight is module.weight
    assert back.extra_repr() == module.extra_repr()
    assert list(back.state_dict()) == list(module.state_dict())
    assert torch.equal(back(input_of(module)), module(input_of(module)))
    assert not hasattr(back, "weight_offset")
    assert layer.weight_quantizer.initialised


def test_follows_the_weights_dtype_and_device():
    layer = QuantLinear.from_float(nn.Linear(3, 2).double(), WEIGHT, INPUT)
    assert layer.weight_quantizer.step_size.dtype == torch.float64
    assert layer.input_quantizer.step_size.dtype == torch.float64


def test_weight_codes_and_quantized_weight_agree():
    layer = quantized(nn.Conv2d(4, 6, 3))
    codes = layer.weight_codes()
    assert codes.dtype == torch.int8
    assert torch.equal(layer.weight_quantizer.dequantize(codes), layer.quantized_weight())


def test_weight_offset_is_added_behind_the_quantizer_and_its_gradient_is_the_quantized_weights():
    torch.manual_seed(0)
    layer = quantized(nn.Linear(9, 5))
    with torch.no_grad():
        layer.weight[0, 0] = 100.0  # outside the range: the latent weight gets no gradient there
    x = torch.rand(3, 9)
    layer.weight_offset = torch.full_like(layer.weight, 0.01, requires_grad=True)
    y = layer(x)
    quantized_weight = layer.quantized_weight().detach().requires_grad_()
    expected = F.linear(layer.input_quantizer(x), quantized_weight + 0.01, layer.bias)
    assert torch.equal(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(layer.weight_offset.grad, quantized_weight.grad)
    assert layer.weight_offset.grad[0, 0] != 0
    assert layer.weight.grad[0, 0] == 0
    assert "weight_offset" not in layer.state_dict()


def test_weight_only_leaves_the_input_alone():
    layer = QuantLinear.from_float(nn.Linear(9, 5), WEIGHT, None)
    assert layer.input_quantizer is None
    x = torch.randn(2, 9)
    assert torch.equal(layer(x), F.linear(x, layer.quantized_weight(), layer.bias))


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_compute_the_same(clone):
    layer = quantized(nn.Conv2d(4, 6, 3))
    x = input_of(layer)
    twin = clone(layer)
    assert torch.equal(twin(x), layer(x))
    assert twin.weight is not layer.weight


def test_built_directly_it_takes_the_options_of_the_float_class():
    layer = QuantConv2d(4, 8, (3, 1), stride=2, padding=(1, 0), groups=2, weight_spec=WEIGHT, activation_spec=INPUT)
    assert layer.weight.shape == (8, 2, 3, 1)
    assert layer.weight_quantizer.initialised
    assert not layer.input_quantizer.initialised
