"""What step sizes that are measured, and not learned, have in common."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from qat_vsam.quant.functional import lsq_quantize, positive_scale, power_of_two, sign_quantize
from qat_vsam.quant.quantizers.base import Quantizer
from qat_vsam.quant.statistics import StepSizeMethod, TensorStatistics


class MeasuredQuantizer(Quantizer):
    """A step size in a buffer; the gradient passes straight through, and none goes to it."""

    current_scale: Tensor

    def _register_scale(self, ones: Tensor) -> None:
        self.register_buffer("current_scale", ones)

    def step(self) -> Tensor:
        step = positive_scale(self.current_scale)
        return power_of_two(step) if self.spec.power_of_two else step

    def _fake_quantize(self, x: Tensor) -> Tensor:
        if self.is_sign:
            return sign_quantize(x, self.step())
        surrogate = self.spec.gradient_of_rounding
        return lsq_quantize(x, self.step(), *self.levels, compiled=self.compiled, surrogate=surrogate)

    def _set_scale(self, statistics: TensorStatistics, method: StepSizeMethod) -> None:
        self._store(self._scale_of(statistics))

    def _store(self, step: Tensor, zero_point: Tensor | int = 0) -> None:
        self.current_scale.copy_(step)

    def _usable(self, step: Tensor) -> Tensor:
        """The step size, where it is 0 some other: 1, or next to nothing where zeros would become half of it."""
        return torch.where(step == 0, 1.0 if self.code_stride == 1 else 0.0, step)

    @abstractmethod
    def _scale_of(self, statistics: TensorStatistics) -> Tensor:
        """The step size that follows from what was seen."""
