"""The codes of one quantizer, as plain numbers that a file can hold."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from qat_vsam.quant import Quantizer
from qat_vsam.quant.functional import dequantize, quantize, sign_codes


@dataclass(frozen=True)
class Grid:
    """The codes of one quantizer: lowest, lowest + stride, ..., highest, of `bits` bits; `zero_point` stands for 0."""

    bits: int
    lowest: int
    highest: int
    stride: int = 1
    zero_point: int = 0

    @classmethod
    def of(cls, quantizer: Quantizer) -> Grid:
        """The grid of a quantizer."""
        zero_point = int(quantizer.zero_point)
        return cls(quantizer.bits, quantizer.q_min, quantizer.q_max, quantizer.code_stride, zero_point)

    def to_dict(self) -> dict[str, int]:
        """Plain numbers for a file; the zero point where there is one."""
        return {key: value for key, value in asdict(self).items() if value or key != "zero_point"}

    @property
    def largest(self) -> int:
        """The largest distance of a code from that of zero."""
        return max(abs(self.lowest - self.zero_point), abs(self.highest - self.zero_point))

    @property
    def carrier(self) -> torch.dtype:
        """The 8-bit type that holds every code."""
        return torch.int8 if self.highest <= 127 else torch.uint8

    def codes(self, x: Tensor, scale: Tensor) -> Tensor:
        """The codes of values, int8 or uint8."""
        if self.stride == 2:
            return sign_codes(x)
        return quantize(x, scale, self.lowest, self.highest, self.zero_point)

    def values(self, codes: Tensor, scale: Tensor) -> Tensor:
        """The values behind codes."""
        return dequantize(codes, scale, self.zero_point)
