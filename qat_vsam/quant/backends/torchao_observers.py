"""torchao's observers by name, set up for grids whose zero has the code 0.

Signed codes need `SYMMETRIC_NO_CLIPPING_ERR`, s = max(minimum / q_min, maximum / q_max): `SYMMETRIC` takes
max|x| / (Qp + 1/2), which clips the largest value, `ASYMMETRIC` moves the zero point. Unsigned codes need `ASYMMETRIC`,
which leaves the zero point at 0 as no value is negative: the symmetric mappings put it in the middle of the codes.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torchao.quantization import MappingType, PerAxis, PerTensor
from torchao.quantization.granularity import Granularity
from torchao.quantization.observer import AffineQuantizedMinMaxObserver, AffineQuantizedMSEObserver

from qat_vsam.quant.observers import Observer, ObserverFactory
from qat_vsam.quant.statistics import TensorStatistics

# holds signed and unsigned codes of 8 bits, and their mirror image
_CODES = torch.int32


def factories(method: str) -> tuple[ObserverFactory, ObserverFactory]:
    """How "torchao-minmax" or "torchao-mse" makes the observers of inputs, and those of weights.

    Example:
        >>> inputs, weights = factories("torchao-minmax")
        >>> observer = inputs(0, 15)
        >>> _ = observer(torch.tensor([0.0, 1.0, 3.0]))
        >>> scale, zero_point = observer.calculate_qparams()
        >>> round(scale.item(), 6), zero_point.item()
        (0.2, 0)
    """
    make = {"torchao-minmax": _minmax, "torchao-mse": _mse}[method]
    return partial(make, PerTensor()), partial(make, PerAxis(0))


def _minmax(granularity: Granularity, q_min: int, q_max: int) -> Observer:
    mapping = MappingType.SYMMETRIC_NO_CLIPPING_ERR if q_min < 0 else MappingType.ASYMMETRIC
    observer: Observer = AffineQuantizedMinMaxObserver(mapping, _CODES, granularity, q_min, q_max)
    return observer


def _mse(granularity: Granularity, q_min: int, q_max: int) -> Observer:
    # The search is over ranges [-t, t]. Unsigned codes are those of a grid twice as wide whose negative half is not
    # used; with their own, half of them would lie below zero.
    return MSEObserver(granularity, q_min if q_min < 0 else -q_max, q_max)


class MSEObserver(AffineQuantizedMSEObserver):  # type: ignore[misc, unused-ignore]
    """torchao's search for the range of least squared error, over a sample of all tensors seen.

    Its own observer keeps what the last tensor alone says, or with `run_once` the first.

    Reference: arXiv 2209.13325.
    """

    def __init__(self, granularity: Granularity, q_min: int, q_max: int) -> None:
        super().__init__(MappingType.SYMMETRIC_NO_CLIPPING_ERR, _CODES, granularity, q_min, q_max)
        self._seen = TensorStatistics(per_channel=isinstance(granularity, PerAxis))

    def forward(self, x: Tensor) -> Tensor:
        self._seen.update(x)
        return x

    def calculate_qparams(self) -> tuple[Tensor, Tensor | None]:
        # torchao's fake quantization has no float64
        super().forward(self._seen.sample.float())
        found: tuple[Tensor, Tensor | None] = super().calculate_qparams()
        return found
