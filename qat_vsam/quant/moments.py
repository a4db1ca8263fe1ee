"""Mean and variance of each channel over many batches."""

from __future__ import annotations

import torch
from torch import Tensor


class ChannelMoments:
    """Count, mean and sum of squared deviations of each channel, in float64, batch by batch.

    Args:
        axis: of the channels.

    Example:
        >>> moments = ChannelMoments()
        >>> for batch in ([[1.0], [2.0]], [[6.0]]):
        ...     _ = moments.update(torch.tensor(batch))
        >>> moments.mean_and_variance()
        (tensor([3.], dtype=torch.float64), tensor([7.], dtype=torch.float64))

    Reference: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
    """

    def __init__(self, axis: int = 1) -> None:
        self.axis = axis
        self.count = 0
        self._mean: Tensor | None = None
        self._squares: Tensor | None = None

    def update(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Take in one tensor; returns the mean and the unbiased variance of it alone."""
        x = x.detach()
        x = x if x.dtype == torch.float64 else x.float()
        others = [axis for axis in range(x.dim()) if axis != self.axis % x.dim()]
        if others:
            variance, mean = (value.double() for value in torch.var_mean(x, dim=others, correction=0))
        else:
            mean, variance = x.double(), torch.zeros_like(x, dtype=torch.float64)
        count = x.numel() // max(len(mean), 1)
        squares = variance * count
        if self._mean is None or self._squares is None:
            self._mean, self._squares = mean, squares
        else:
            apart, share = mean - self._mean, count / (self.count + count)
            self._mean = self._mean + apart * share
            self._squares = self._squares + squares + apart.square() * self.count * share
        self.count += count
        return mean, squares / max(count - 1, 1)

    def mean_and_variance(self) -> tuple[Tensor, Tensor]:
        """The mean and the unbiased variance, shape (channels,); of a single value the variance is 0."""
        if self._mean is None or self._squares is None:
            raise ValueError("no values were seen yet")
        return self._mean, self._squares / max(self.count - 1, 1)
