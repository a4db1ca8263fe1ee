"""Step sizes that calibration chooses and training leaves alone."""

from __future__ import annotations

import torch
from torch import Tensor

from qat_vsam.quant.functional import lsq_quantize, power_of_two, sign_quantize
from qat_vsam.quant.quantizers.base import Quantizer
from qat_vsam.quant.statistics import StepSizeMethod, TensorStatistics, initial_step_size, percentile_step


class FixedQuantizer(Quantizer):
    """A step size chosen once, by what calibration saw, or by the weight as it was then; straight through.

    "percentile": s = max(P / Qp, P' / Qn), P the `percentile`-th percentile of the values and P' the one as far from
    the other end, so that outliers are clipped. "mse": the s of least squared error. At 1 bit and signed
    s = mean|x|.

    Reference: arXiv 2004.09602 (percentile); 1810.05723 (squared error).
    """

    fixed_scale: Tensor

    def _register_scale(self, ones: Tensor) -> None:
        self.register_buffer("fixed_scale", ones)

    def step(self) -> Tensor:
        step = self.fixed_scale.clone()
        return power_of_two(step) if self.spec.power_of_two else step

    def _fake_quantize(self, x: Tensor) -> Tensor:
        if self.is_sign:
            return sign_quantize(x, self.step())
        surrogate = self.spec.gradient_of_rounding
        return lsq_quantize(x, self.step(), *self.levels, compiled=self.compiled, surrogate=surrogate)

    def _set_scale(self, statistics: TensorStatistics, method: StepSizeMethod) -> None:
        if self.is_sign:
            step = statistics.mean_magnitude
        elif self.spec.method == "percentile":
            step = percentile_step(statistics, *self.levels, self.spec.percentile)
        else:
            step = initial_step_size(statistics, *self.levels, "mse")
        self.fixed_scale.copy_(torch.where(step > 0, step, 1.0))
