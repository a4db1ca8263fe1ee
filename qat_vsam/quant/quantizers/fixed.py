"""Step sizes that calibration chooses and training leaves alone."""

from __future__ import annotations

from torch import Tensor

from qat_vsam.quant.quantizers.measured import MeasuredQuantizer
from qat_vsam.quant.statistics import TensorStatistics, initial_step_size, percentile_step


class FixedQuantizer(MeasuredQuantizer):
    """A step size chosen once, by what calibration saw, or by the weight as it was then; straight through.

    "percentile": s = max(P / Qp, P' / Qn), P the `percentile`-th percentile of the values and P' the one as far from
    the other end, so that outliers are clipped. "mse": the s of least squared error. At 1 bit and signed
    s = mean|x|.

    Reference: arXiv 2004.09602 (percentile); 1810.05723 (squared error).
    """

    def _scale_of(self, statistics: TensorStatistics) -> Tensor:
        if self.is_sign:
            step = statistics.mean_magnitude
        elif self.spec.method == "percentile":
            step = percentile_step(statistics, *self.levels, self.spec.percentile)
        else:
            step = initial_step_size(statistics, *self.levels, "mse")
        return self._usable(step)
