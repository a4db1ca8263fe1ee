"""Small convolutional networks without shortcuts, for the bundled 8 x 8 digits and for images of 16 x 16."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class SmallCNN(nn.Module):
    """3 x 3 convolutions, each with batch norm and ReLU, then mean pooling and a linear head.

    The first convolution keeps the image; each stage halves it by a convolution of stride 2, doubles the
    channels and adds a convolution of stride 1. At width w and two stages: w, 2w, 2w, 4w, 4w channels.

    Args:
        width: channels of the first convolution.
        num_classes: width of the head.
        in_channels: channels C of the images.
        stages: how often the image is halved.

    Shape:
        (N, C, H, W) to (N, num_classes); H and W multiples of 2^stages.

    Example:
        >>> import torch
        >>> SmallCNN(width=8)(torch.zeros(4, 3, 16, 16)).shape
        torch.Size([4, 10])
    """

    def __init__(self, width: int = 16, num_classes: int = 10, *, in_channels: int = 3, stages: int = 2) -> None:
        super().__init__()
        channels = [in_channels, width] + [width << stage for stage in range(1, stages + 1) for _ in range(2)]
        self.depth = len(channels) - 1
        for number, (before, after) in enumerate(pairwise(channels), start=1):
            stride = 2 if number % 2 == 0 else 1
            self.add_module(f"conv{number}", nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False))
            self.add_module(f"bn{number}", nn.BatchNorm2d(after))
        self.linear = nn.Linear(channels[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        for number in range(1, self.depth + 1):
            conv, norm = self.get_submodule(f"conv{number}"), self.get_submodule(f"bn{number}")
            x = F.relu(norm(conv(x)))  # halved and doubled in channels at every even number
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)  # (N, 2^stages width)
        logits: Tensor = self.linear(x)
        return logits
