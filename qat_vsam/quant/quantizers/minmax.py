"""Step sizes read from the range of what is quantized."""

from __future__ import annotations

import torch
from torch import Tensor

from qat_vsam.quant.quantizers.measured import MeasuredQuantizer
from qat_vsam.quant.statistics import TensorStatistics, range_step


class MinMaxQuantizer(MeasuredQuantizer):
    """A step size that spans the range of the tensor: s = max(maximum / Qp, minimum / Qn), straight through.

    A weight is measured anew at each use. For an activation the step size follows the batches: at each
    forward in training mode it moves by the share `momentum` towards that of the batch. Neither moves while
    `updates_state` is False, so that a second pass over the same batch sees the quantizer of the first.

    At 1 bit and signed it is x_hat = mean|x| sign(x) instead, as in XNOR-Net, the mean over what shares the
    scale.

    Reference: arXiv 1712.05877 (ranges that follow the batches), 1603.05279 (1 bit).
    """

    updates_state = True
    momentum = 0.1

    def codes(self, x: Tensor) -> Tensor:
        if self.role == "weight":
            self._follow(x)
        return super().codes(x)

    def _fake_quantize(self, x: Tensor) -> Tensor:
        self._follow(x)
        return super()._fake_quantize(x)

    @torch.no_grad()
    def _follow(self, x: Tensor) -> None:
        if not self.updates_state or not (self.role == "weight" or self.training):
            return
        measured = self._scale_of(self.statistics(x, sampling=False)).to(self.current_scale.dtype)
        # A batch that overflowed must not spoil the steps after it.
        measured = torch.where(measured.isfinite(), measured, self.current_scale)
        self.current_scale.lerp_(measured, 1.0 if self.role == "weight" else self.momentum)

    def _scale_of(self, statistics: TensorStatistics) -> Tensor:
        step = statistics.mean_magnitude if self.is_sign else range_step(statistics, *self.levels)
        return self._usable(step)
