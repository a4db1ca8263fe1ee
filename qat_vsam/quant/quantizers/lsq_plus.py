"""Learned step size and offset: an asymmetric grid."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from qat_vsam.quant.functional import positive_scale, power_of_two
from qat_vsam.quant.offset import integer_zero_point, lsq_plus_quantize
from qat_vsam.quant.quantizers.base import Quantizer
from qat_vsam.quant.statistics import StepSizeMethod, TensorStatistics, asymmetric_range


class LSQPlusQuantizer(Quantizer):
    """A learned step size s and a learned offset beta, for activations with negative values (Swish, GELU, sums).

        z = round(clip(-beta / s, 0, Qp)),   q = clip(round(x / s) + z, 0, Qp),   x_hat = s (q - z)

    by `offset.lsq_plus_quantize`, where the gradients stand; those of s and beta are scaled by 1 / sqrt(N Qp). The
    paper adds beta itself to s q. Here it is rounded to the grid, so that zero stays exact under padding and a
    runtime gets an integer zero point. The codes are unsigned whatever the values are.

    Example:
        >>> from qat_vsam.quant import LSQPlusQuantizer, TensorSpec, TensorStatistics
        >>> quantizer = LSQPlusQuantizer(TensorSpec(bits=2, method="lsq_plus", signed=False), role="activation")
        >>> x = torch.tensor([[-1.0, 0.0, 1.0, 2.0]])
        >>> statistics = TensorStatistics()
        >>> statistics.update(x)
        >>> quantizer.initialise(statistics)
        >>> quantizer.codes(x), int(quantizer.zero_point)
        (tensor([[0, 1, 2, 3]], dtype=torch.uint8), 1)

    Reference: arXiv 2004.09576.
    """

    step_size: nn.Parameter
    offset: nn.Parameter

    def _register_scale(self, ones: Tensor) -> None:
        self.step_size = nn.Parameter(ones.reshape(-1))
        self.offset = nn.Parameter(torch.zeros_like(self.step_size))

    def step(self) -> Tensor:
        own = positive_scale(self._shaped(self.step_size))
        return power_of_two(own) if self.spec.power_of_two else own

    @property
    def asymmetric(self) -> bool:
        return True

    @property
    def zero_point(self) -> Tensor:
        return integer_zero_point(self.step(), self._shaped(self.offset), self.q_max)

    def _fake_quantize(self, x: Tensor) -> Tensor:
        sharing = x.shape[0] if x.dim() > 0 else 1
        factor = 1 / math.sqrt(max(x.numel() / max(sharing, 1), 1) * self.q_max)
        return lsq_plus_quantize(x, self.step(), self._shaped(self.offset), self.q_max, factor)

    def _set_scale(self, statistics: TensorStatistics, method: StepSizeMethod) -> None:
        low, high = asymmetric_range(statistics, self.q_max)
        step = (high - low) / self.q_max
        self.step_size.copy_(torch.where(step > 0, step, 1.0))
        self.offset.copy_(low)

    def _store(self, step: Tensor, zero_point: Tensor | int = 0) -> None:
        self.step_size.copy_(step)
        self.offset.copy_(-step * zero_point)
