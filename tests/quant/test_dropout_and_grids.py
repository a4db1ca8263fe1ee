"""In training too every layer reads codes: nothing that changes a tensor in training only is behind its quantizer."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
import torchvision
from torch import nn

from qat_vsam.quant import QuantSpec, calibrate, prepare

X = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
SPEC = QuantSpec.preset("w8a4", residual_adds="quantized", first_last_bits=4)


class Functional(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5, self.training)


class Noise(nn.Module):
    """A kind of module that nobody's list holds."""

    def forward(self, x):
        return x + 0.3 * torch.randn_like(x) if self.training else x


class Inside(nn.Module):
    """A dropout by the low-level function, and an arrangement behind it."""

    def forward(self, x):
        return torch.dropout(x, 0.5, self.training).flip(-1).contiguous()


KINDS = {
    "Dropout": nn.Dropout,
    "Dropout2d": nn.Dropout2d,
    "in place": lambda: nn.Dropout(inplace=True),
    "sequential": lambda: nn.Sequential(nn.Identity(), nn.Dropout(0.3)),
    "functional": Functional,
    "stochastic depth": lambda: torchvision.ops.StochasticDepth(0.5, "row"),
    "noise": Noise,
    "low level": Inside,
}


class Joined(nn.Module):
    """Layer c reads a concatenation, of a grid of its own, through something; layer e reads it as it is."""

    def __init__(self, between, functional=False):
        super().__init__()
        self.a, self.b, self.c, self.e = (
            nn.Conv2d(3, 8, 1),
            nn.Conv2d(3, 8, 1),
            nn.Conv2d(16, 2, 1),
            nn.Conv2d(16, 2, 1),
        )
        self.r, self.q, self.between = nn.ReLU(), nn.ReLU(), between

    def forward(self, x):
        y = torch.cat([self.r(self.a(x)), self.q(self.b(x))], 1)
        z = self.e(y)
        return self.c(self.between(y)) + z


def used_inputs(model, name):
    """What the convolution of a layer multiplies, in training."""
    seen, layer = [], model.get_submodule(name)
    if layer.input_is_quantized:
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    else:
        layer.input_quantizer.register_forward_hook(lambda _, args, y: seen.append(y.detach().clone()))
    torch.manual_seed(0)
    model.train()(X)
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_layer_multiplies_lies_on_its_grid_behind_what_changes_it_in_training(kind):
    torch.manual_seed(0)
    model = Joined(KINDS[kind]()).eval()
    prepare(model, SPEC, sample=X[:2])
    calibrate(model, [X])
    quantizer = model.c.input_quantizer
    assert model.e.input_quantizer is quantizer
    assert model.e.input_is_quantized
    levels = [(x / quantizer.step()) for x in used_inputs(model, "c")]
    assert levels
    for level in levels:
        assert level.max() <= quantizer.q_max + 1e-4
        assert level.min() >= quantizer.q_min - 1e-4
        assert torch.allclose(level, level.round(), atol=1e-4)


def test_identities_and_evaluation_mode_ask_for_no_second_quantizer():
    model = Joined(nn.Identity()).eval()
    prepare(model, SPEC, sample=X[:2])
    assert model.c.input_is_quantized
    torch.manual_seed(0)
    dropping, plain = Joined(nn.Dropout()).eval(), Joined(nn.Identity()).eval()
    plain.load_state_dict(dropping.state_dict())
    for net in (dropping, plain):
        prepare(net, SPEC, sample=X[:2])
        calibrate(net, [X])
    assert torch.equal(dropping.eval()(X), plain.eval()(X))
