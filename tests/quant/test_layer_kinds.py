"""Every kind of layer: the float layer when off, a scale for each output channel, and the same from its integers."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import qat_vsam as qv
from qat_vsam.export import integer_model, load_packed
from qat_vsam.quant import QuantSpec, calibrate, prepare, quant_layers, set_quantizers_enabled, swap_channels

KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1, groups=2), (5, 4, 9)),
    "conv2d depthwise": (lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4), (5, 4, 6, 6)),
    "conv3d": (lambda: nn.Conv3d(4, 6, (1, 3, 3), padding_mode="circular", padding=(0, 1, 1)), (3, 4, 2, 6, 6)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1), (5, 4, 9)),
    "transposed 2d": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, bias=False), (5, 4, 6, 6)),
    "transposed 2d, grouped": (lambda: nn.ConvTranspose2d(4, 6, (3, 2), stride=2, groups=2), (5, 4, 6, 6)),
    "transposed 3d": (lambda: nn.ConvTranspose3d(4, 2, 2, dilation=2), (3, 4, 2, 5, 5)),
    "linear": (lambda: nn.Linear(4, 6), (5, 3, 4)),
}


@pytest.fixture(params=KINDS, ids=lambda name: name.replace(" ", "-"))
def built(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    build, shape = KINDS[request.param]
    return nn.Sequential(build()).eval(), torch.randn(shape)


def quantized(model: nn.Module, x: Tensor, bits: str = "w4a8") -> nn.Module:
    model = copy.deepcopy(model)
    prepare(model, QuantSpec.preset(bits, first_last_bits=4))
    calibrate(model, [x])
    return model


def test_off_it_is_the_float_layer_bit_for_bit_and_gives_it_back(built):
    model, x = built
    ours = quantized(model, x)
    set_quantizers_enabled(ours, False)
    assert torch.equal(ours(x), model(x))
    layer = ours[0].to_float()
    assert type(layer) is type(model[0])
    assert torch.equal(layer(x), model(x))


def test_each_output_channel_has_its_scale(built):
    """A channel ten times as large changes no other channel's values."""
    model, x = built
    ours = quantized(model, x)
    ((_, layer),) = quant_layers(ours)
    channels = model(x).shape[-1 if isinstance(model[0], nn.Linear) else 1]
    assert layer.weight_quantizer.scale().shape == (channels,)
    larger = copy.deepcopy(model)
    with torch.no_grad():
        rows = layer.rows(larger[0].weight).clone()
        rows[1] *= 10
        larger[0].weight.copy_(layer.from_rows(rows))
    axis = -1 if isinstance(model[0], nn.Linear) else 1
    before, after = (quantized(net, x)(x).transpose(0, axis) for net in (model, larger))
    assert torch.equal(torch.cat([before[:1], before[2:]]), torch.cat([after[:1], after[2:]]))
    assert not torch.equal(before[1], after[1])


def test_its_integers_compute_the_same_and_survive_the_packed_file(built, tmp_path):
    model, x = built
    ours = quantized(model, x)
    integers = integer_model(ours)
    torch.testing.assert_close(integers(x), ours(x), rtol=1e-4, atol=1e-5)
    codes = ours[0].weight_codes()
    assert codes.shape == model[0].weight.shape
    qv.export(ours, tmp_path / "model.safetensors", format="packed", sample=x)
    assert torch.equal(load_packed(tmp_path / "model.safetensors", model)(x), integers(x))


def test_an_onnx_file_computes_the_same(built, tmp_path):
    model, x = built
    head = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    head(model(x))
    net = nn.Sequential(model[0], *head).eval()
    proof = qv.export(quantized(net, x, "w8a8"), tmp_path / "model.onnx", format="onnx", sample=x)
    assert proof.argmax_agreement == 1


def test_its_weight_learns_through_the_offset_and_the_step_size(built):
    model, x = built
    ours = quantized(model, x).train()
    ((_, layer),) = quant_layers(ours)
    layer.weight_offset = torch.zeros_like(layer.weight, requires_grad=True)
    ours(x).square().sum().backward()
    assert layer.weight_offset.grad.abs().sum() > 0
    assert layer.weight_quantizer.step_size.grad.abs().sum() > 0
    inside = layer.weight.grad != 0
    torch.testing.assert_close(layer.weight.grad[inside], layer.weight_offset.grad[inside])
    assert layer.weight_step_size().expand(layer.weight.shape).shape == layer.weight.shape


def test_channels_are_swapped_and_back_within_their_groups():
    for groups in (1, 2, 4):
        weight = torch.randn(8, 3, 5, 2)
        rows = swap_channels(weight, groups)
        assert rows.shape == (3 * groups, 8 // groups, 5, 2)
        assert torch.equal(swap_channels(rows, groups), weight)
        y = nn.functional.conv_transpose2d(torch.ones(1, 8, 1, 1), weight, groups=groups)
        torch.testing.assert_close(y[0], rows.sum(1))


class Embedder(nn.Module):
    def __init__(self, **options) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 8, padding_idx=0, **options)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.table(x).mean(1))


def test_an_embedding_has_a_scale_for_each_entry_and_no_quantized_input(tmp_path):
    torch.manual_seed(0)
    model, x = Embedder().eval(), torch.randint(20, (16, 5))
    ours = copy.deepcopy(model)
    summary = prepare(ours, QuantSpec.preset("w4a8", first_last_bits=8))
    calibrate(ours, [x])
    table = ours.table
    assert table.weight_quantizer.scale().shape == (20,)
    assert table.input_quantizer is None
    assert "input" not in summary.rows[0].scheme
    assert torch.all(table(torch.tensor([0])) == 0)
    assert (table(x) - model.table(x)).abs().max() <= table.weight_quantizer.scale().max()
    integers = integer_model(ours)
    torch.testing.assert_close(integers(x), ours(x), rtol=1e-4, atol=1e-5)
    qv.export(ours, tmp_path / "model.safetensors", format="packed", sample=x)
    assert torch.equal(load_packed(tmp_path / "model.safetensors", model)(x), integers(x))
    assert qv.export(ours, tmp_path / "model.onnx", format="onnx", sample=x).argmax_agreement == 1
    ours.train()(x).sum().backward()
    assert torch.all(table.weight.grad[0] == 0)
    set_quantizers_enabled(ours, False)
    assert torch.equal(ours.eval()(x), model(x))


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"max_norm": 1.0}, "max_norm rewrites its table"), ({"sparse": True}, "its gradient is sparse")],
)
def test_an_embedding_that_cannot_be_quantized_is_listed_with_the_reason(options, reason):
    (row, _) = prepare(Embedder(**options), QuantSpec.preset("w4a8")).rows
    assert row.skipped == reason
