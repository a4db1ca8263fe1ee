"""Weights through a hyperbolic tangent, onto a symmetric grid without zero."""

from __future__ import annotations

import torch
from torch import Tensor

from qat_vsam.quant.functional import lsq_quantize, quantize
from qat_vsam.quant.kernels import along_axis_0
from qat_vsam.quant.quantizers.minmax import MinMaxQuantizer
from qat_vsam.quant.statistics import TensorStatistics


class DoReFaQuantizer(MinMaxQuantizer):
    r"""DoReFa's weights, times the largest magnitude.

        t = tanh(w) / max|tanh(w)|;   w_hat = max|w| (2 round((2^b - 1) (t/2 + 1/2)) / (2^b - 1) - 1)

    that is, t on the odd codes -2^b + 1 .. 2^b - 1. The gradient passes straight through the rounding, and through
    tanh and its maximum by the chain rule. The paper has no factor max|w|, which no gradient goes through: a batch
    norm behind the layer makes both equal, and a pretrained layer without one keeps its magnitude.

    For weights of 2 to 7 bits; at 1 bit the paper's weights are mean|w| sign(w).

    Example:
        >>> from qat_vsam.quant import DoReFaQuantizer, TensorSpec, TensorStatistics
        >>> w = torch.tensor([[-2.0, -0.1, 0.3, 1.0]])
        >>> quantizer = DoReFaQuantizer(TensorSpec(bits=2, signed=True, method="dorefa"), role="weight")
        >>> statistics = TensorStatistics()
        >>> statistics.update(w)
        >>> quantizer.initialise(statistics)
        >>> quantizer.codes(w)
        tensor([[-3, -1,  1,  3]], dtype=torch.int8)

    Reference: arXiv 1606.06160, equation 9.
    """

    @property
    def has_odd_codes(self) -> bool:
        return True

    @torch.no_grad()
    def codes(self, x: Tensor) -> Tensor:
        self._require_step_size()
        self._follow(x)
        return quantize(self._squeezed(self.sharing(x)), x.new_ones(()), *self.levels).reshape(x.shape)

    def _fake_quantize(self, x: Tensor) -> Tensor:
        self._follow(x)
        squeezed = self._squeezed(x)
        surrogate = self.spec.gradient_of_rounding
        levels = lsq_quantize(
            squeezed, squeezed.new_ones(()), *self.levels, compiled=self.compiled, surrogate=surrogate
        )
        return (2 * levels * along_axis_0(self.scale(), x)).to(x.dtype)

    def _squeezed(self, x: Tensor) -> Tensor:
        """t in units of the distance of two levels."""
        squeezed = torch.tanh(x if x.dtype == torch.float64 else x.float())
        axes = list(range(0 if self.granularity == "per_tensor" else 1, x.dim()))
        largest = squeezed.abs().amax(axes, keepdim=True) if axes else squeezed.abs()
        return squeezed / torch.where(largest > 0, largest, 1.0) * self.levels[1]

    def _scale_of(self, statistics: TensorStatistics) -> Tensor:
        return self._usable(torch.maximum(statistics.maximum, -statistics.minimum) / self.levels[1])
