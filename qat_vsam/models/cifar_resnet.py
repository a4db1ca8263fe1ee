"""The residual networks of the CIFAR experiments: depth 20, 32, 44 and 56, about 0.27 to 0.85 M parameters.

A stem, three stages of residual blocks with 16, 32 and 64 channels, mean pooling and one linear layer. Where
a stage halves the image, the shortcut has no parameters ("option A"): every second pixel, and zeros for the
new channels. Module names are those of the public checkpoints, which therefore load unchanged.

Reference: He et al., "Deep Residual Learning for Image Recognition", arXiv 1512.03385, section 4.2.
"""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class Subsample(nn.Module):
    """The shortcut without parameters: every second pixel, padded with zero channels on both sides.

    Args:
        new_channels: number of channels to add, half before and half after the existing ones.

    Example:
        >>> import torch
        >>> Subsample(16)(torch.ones(1, 16, 8, 8)).shape
        torch.Size([1, 32, 4, 4])
    """

    def __init__(self, new_channels: int) -> None:
        super().__init__()
        self.new_channels = new_channels

    def forward(self, x: Tensor) -> Tensor:
        before = self.new_channels // 2
        # pad counts from the last dimension backwards: width, height, channels
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, before, self.new_channels - before))


class BasicBlock(nn.Module):
    """relu(shortcut(x) + bn(conv(relu(bn(conv(x)))))) with 3 x 3 convolutions.

    Args:
        in_channels: channels of the input (N, in_channels, H, W).
        channels: channels of the output (N, channels, H / stride, W / stride).
        stride: 1, or 2 where the block halves the image.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity() if stride == 1 else Subsample(channels - in_channels)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class CifarResNet(nn.Module):
    """A residual network of depth 6 n + 2 for images of 32 x 32.

    Args:
        depth: number of layers with weights, 6 n + 2: 20, 32, 44, 56.
        num_classes: width of the head.

    Shape:
        (N, 3, H, W) to (N, num_classes); H and W multiples of 4, 32 in the paper.

    Example:
        >>> import torch
        >>> CifarResNet(20)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, depth: int, num_classes: int = 10) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))  # (N, 16, H, W)
        x = self.layer3(self.layer2(self.layer1(x)))  # (N, 64, H / 4, W / 4)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)  # (N, 64)
        logits: Tensor = self.linear(x)
        return logits


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))
