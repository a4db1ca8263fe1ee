"""Parameterized clipping: a learned clip value."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qat_vsam.quant.functional import lsq_quantize, positive_scale, power_of_two, sign_quantize
from qat_vsam.quant.quantizers.base import Quantizer
from qat_vsam.quant.statistics import StepSizeMethod, TensorStatistics, initial_step_size


class PACTQuantizer(Quantizer):
    r"""A learned clip value alpha, the step size being alpha / Qp.

        x_hat = s round(clip(x, Qn s, alpha) / s),   s = alpha / Qp
        d x_hat / d alpha = 1 where x > alpha,  Qn / Qp where x < Qn s,  0 in between

    With Qn = 0, behind a ReLU, this is the paper's. A signed grid is clipped on both sides by the same alpha, and at
    1 bit it is alpha sign(x). The paper starts alpha large and decays it: put the role step_size under weight decay
    for that. Here it starts where the squared error is least.

    Example:
        >>> from qat_vsam.quant import PACTQuantizer, TensorSpec, TensorStatistics
        >>> quantizer = PACTQuantizer(TensorSpec(bits=2, method="pact"), role="activation")
        >>> x = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
        >>> statistics = TensorStatistics()
        >>> statistics.update(x)
        >>> quantizer.initialise(statistics)
        >>> quantizer.codes(x)
        tensor([[0, 1, 2, 3]], dtype=torch.uint8)

    Reference: arXiv 1805.06085.
    """

    clip_value: nn.Parameter

    def _register_scale(self, ones: Tensor) -> None:
        self.clip_value = nn.Parameter(ones.reshape(-1))

    def step(self) -> Tensor:
        step = positive_scale(self._shaped(self.clip_value) / self.levels[1])
        return power_of_two(step) if self.spec.power_of_two else step

    def _fake_quantize(self, x: Tensor) -> Tensor:
        if self.is_sign:
            return sign_quantize(x, self.step())
        return lsq_quantize(
            x,
            self.step(),
            *self.levels,
            compiled=self.compiled,
            surrogate=self.spec.gradient_of_rounding,
            rounding_moves_step=False,
        )

    def _set_scale(self, statistics: TensorStatistics, method: StepSizeMethod) -> None:
        step = statistics.mean_magnitude if self.is_sign else initial_step_size(statistics, *self.levels, method)
        self._store(torch.where(step > 0, step, 1.0))

    def _store(self, step: Tensor, zero_point: Tensor | int = 0) -> None:
        self.clip_value.copy_(step * self.levels[1])
