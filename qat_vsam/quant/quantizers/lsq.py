"""Learned step size quantization."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from qat_vsam.quant.functional import lsq_quantize, positive_scale, power_of_two, sign_quantize
from qat_vsam.quant.quantizers.base import Quantizer
from qat_vsam.quant.statistics import StepSizeMethod, TensorStatistics, initial_step_size


class LSQQuantizer(Quantizer):
    """A learned step size (arXiv 1902.08153), by `functional.lsq_quantize`.

    The step size is a Parameter of shape (1,) or (channels,); `fully_shard` takes none without an axis. Its
    gradient is scaled by 1 / sqrt(N Qp), N being the number of elements that share it; for an activation those of
    one sample. At 1 bit and signed the grid is {-s, s}, by `functional.sign_quantize`.

    Example:
        >>> from qat_vsam.quant import LSQQuantizer, TensorSpec, TensorStatistics
        >>> quantizer = LSQQuantizer(TensorSpec(bits=4), role="activation")
        >>> x = torch.linspace(0, 1.5, 6)[None]
        >>> statistics = TensorStatistics()
        >>> statistics.update(x)
        >>> quantizer.initialise(statistics)
        >>> quantizer.signed, quantizer.codes(x)
        (False, tensor([[ 0,  3,  6,  9, 12, 15]], dtype=torch.uint8))
    """

    step_size: nn.Parameter

    def _register_scale(self, ones: Tensor) -> None:
        self.step_size = nn.Parameter(ones.reshape(-1))

    def _signed_step(self) -> Tensor:
        own = self._shaped(self.step_size)
        return power_of_two(positive_scale(own)) if self.spec.power_of_two else own

    def step(self) -> Tensor:
        return positive_scale(self._signed_step())

    def gradient_factor(self, x: Tensor) -> float:
        """1 / sqrt(N Qp) for this x."""
        sharing = x.shape[0] if self.role == "activation" and x.dim() > 0 else self.step_size.numel()
        elements = x.numel() / max(sharing, 1)
        return 1 / math.sqrt(max(elements, 1) * self.levels[1])

    def _fake_quantize(self, x: Tensor) -> Tensor:
        factor = self.gradient_factor(x)
        if self.is_sign:
            return sign_quantize(x, self._signed_step(), factor)
        surrogate = self.spec.gradient_of_rounding
        return lsq_quantize(x, self._signed_step(), *self.levels, factor, compiled=self.compiled, surrogate=surrogate)

    def _set_scale(self, statistics: TensorStatistics, method: StepSizeMethod) -> None:
        step = statistics.mean_magnitude if self.is_sign else initial_step_size(statistics, *self.levels, method)
        self._store(torch.where(step > 0, step, 1.0))

    def _store(self, step: Tensor, zero_point: Tensor | int = 0) -> None:
        self.step_size.copy_(step)
