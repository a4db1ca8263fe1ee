"""A small convolutional network for the bundled 8 x 8 digits."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class DigitsCNN(nn.Module):
    """Three 3 x 3 convolutions, each with batch norm and ReLU, then mean pooling and a linear head.

    Channels: width, 2 width (stride 2), 2 width. At the default width the net has 14,458 parameters.

    Args:
        width: channels of the first convolution.
        num_classes: width of the head.

    Shape:
        (N, 1, 8, 8) to (N, num_classes).

    Example:
        >>> import torch
        >>> DigitsCNN(width=8)(torch.zeros(4, 1, 8, 8)).shape
        torch.Size([4, 10])
    """

    def __init__(self, width: int = 16, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.conv3 = nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(2 * width)
        self.linear = nn.Linear(2 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))  # (N, width, 8, 8)
        x = F.relu(self.bn2(self.conv2(x)))  # (N, 2 width, 4, 4)
        x = F.relu(self.bn3(self.conv3(x)))
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)  # (N, 2 width)
        return self.linear(x)
