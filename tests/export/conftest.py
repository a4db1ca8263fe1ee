"""A net with what exporters stumble over, and its fake-quantized forms."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import qat_vsam as qv
from qat_vsam.export import Proof


class UserNet(nn.Module):
    """Bias without batch norm, a depthwise convolution, negative gammas, a padded shortcut, flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(8)
        self.wide = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.wide_norm = nn.BatchNorm2d(16)
        self.hidden = nn.Linear(16 * 4 * 4, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.depthwise_norm(self.depthwise(x)))
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        x = F.relu(self.wide_norm(self.wide(x)) + shortcut)
        return self.head(F.relu(self.hidden(x.flatten(1))))


def user_net(seed: int = 0) -> UserNet:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = UserNet()
        for norm in (net.depthwise_norm, net.wide_norm):
            nn.init.normal_(norm.weight, std=1.0)
            nn.init.normal_(norm.bias, std=0.5)
            nn.init.normal_(norm.running_mean, std=0.2)
            nn.init.uniform_(norm.running_var, 0.1, 1.0)
        return net


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def batch() -> Tensor:
    return torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def x() -> Tensor:
    return batch()


def quantized_net(bits: str | None, seed: int = 0) -> nn.Module:
    net = user_net(seed)
    if bits is not None:
        qv.prepare(net, qv.QuantSpec.preset(bits), sample=batch()[:2])
        qv.calibrate(net, [batch()])
    return net.eval()


@pytest.fixture
def quantize() -> Callable[..., nn.Module]:
    """quantize("w4a4", seed=0): a prepared and calibrated `UserNet` in evaluation mode; None: in float."""
    return quantized_net


class Exported(NamedTuple):
    path: Path
    model: nn.Module
    proof: Proof


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The `UserNet` at 4 bits as an ONNX file, to read only."""
    model, path = quantized_net("w4a4"), tmp_path_factory.mktemp("exported") / "model.onnx"
    return Exported(path, model, qv.export(model, path, sample=batch()))
