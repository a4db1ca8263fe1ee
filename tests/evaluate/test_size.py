from __future__ import annotations

import torch
from torch import nn

from qat_vsam.evaluate import model_size
from qat_vsam.models import build_model
from qat_vsam.quant import QuantSpec, calibrate, prepare, set_quantizers_enabled


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=4)
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.grouped(self.norm(self.stem(x)).relu())
        return self.head(x.mean((2, 3)))


STEM, GROUPED, HEAD = 3 * 8 * 9, 2 * 16 * 9, 160
OTHER_BYTES = 4 * (16 + 10) + 4 * 4 * 8 + 8  # biases, batch norm, its counter
MACS = (STEM * 64, GROUPED * 16, HEAD)


def test_a_float_net_is_counted_by_hand() -> None:
    size = model_size(_Net(), torch.zeros(2, 3, 8, 8))
    assert size.parameters == STEM + GROUPED + HEAD + 16 + 10 + 16
    assert size.float_bytes == size.packed_bytes == 4 * (STEM + GROUPED + HEAD) + OTHER_BYTES
    assert size.macs == sum(MACS)
    assert size.bit_operations == 32 * 32 * sum(MACS)


def test_a_quantized_net_has_its_weights_at_their_bits_and_the_same_float_size() -> None:
    model = _Net()
    x = torch.randn(2, 3, 8, 8)
    before = model_size(model)
    prepare(model, QuantSpec.preset("w3a4"), sample=x)
    calibrate(model, [x])
    size = model_size(model, x)
    scales = 4 * (8 + 16 + 10) + 4 * 3
    assert size.packed_bytes == STEM + GROUPED * 3 // 8 + HEAD + scales + OTHER_BYTES
    assert (size.float_bytes, size.parameters) == (before.float_bytes, before.parameters)
    assert size.bit_operations == 64 * MACS[0] + 3 * 4 * MACS[1] + 64 * MACS[2]


def test_weight_only_activations_and_disabled_quantizers_count_as_32_bits() -> None:
    model, x = _Net(), torch.randn(2, 3, 8, 8)
    prepare(model, QuantSpec.preset("w4"), sample=x)
    assert model_size(model, x).bit_operations == 32 * (8 * MACS[0] + 4 * MACS[1] + 8 * MACS[2])
    set_quantizers_enabled(model, False)
    size = model_size(model, x)
    assert size.bit_operations == 32 * 32 * sum(MACS)
    assert size.packed_bytes == size.float_bytes


def test_counting_leaves_mode_hooks_and_statistics_alone() -> None:
    model = _Net().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model_size(model, torch.randn(2, 3, 8, 8))
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_shared_weight_counts_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    size = model_size(model, torch.zeros(1, 4))
    assert (size.parameters, size.float_bytes, size.macs) == (16, 64, 32)


def test_resnet20_at_four_bits_is_below_16_percent_of_float() -> None:
    model = build_model("cifar_resnet20", seed=0)
    prepare(model, QuantSpec.preset("w4a4"))
    size = model_size(model)
    assert size.packed_bytes <= 0.16 * size.float_bytes
