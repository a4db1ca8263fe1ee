"""Layers of the integer model: each multiplies integer codes and scales once, at the end.

    a   = round(clip(x / s_x, Qn, Qp))                 activation codes less their zero point, one step size a tensor
    acc = sum_k w_k a_k                                integers, accumulated without rounding
    y   = acc * (s_x s_w) + bias                       one scale s_w for each output channel

Weights quantized per group have several scales in a sum: they are multiplied by theirs first, y = sum_k (s_w w)_k a_k
s_x + bias, and the products are sums of floats.

The fake-quantized layer computes sum_k (s_w w_k)(s_x a_k) + bias: the same number but for float rounding.
Integers are held in floating point tensors, because that is where PyTorch has fast convolutions on every
device. That is exact as long as no partial sum leaves the 24 bits of a float32; where sum_k |w_k| max|a|
could, the layer accumulates in float64.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from qat_vsam.export.grid import Grid
from qat_vsam.quant import QuantLayer, swap_channels
from qat_vsam.quant.functional import dequantize
from qat_vsam.quant.layers import CONV_TRANSPOSE
from qat_vsam.quant.subclass import AtCall, QuantSubclass, is_subclass, operation_of

_FLOAT32_EXACT = 2**24


class IntegerTensor(nn.Module):
    """A tensor between layers as integer codes: x to scale * code, the value that an addition of integers sees.

    Args:
        scale: shape ().
        grid: of the codes.
    """

    scale: Tensor

    def __init__(self, scale: Tensor, grid: Grid) -> None:
        super().__init__()
        self.grid = grid
        self.register_buffer("scale", scale)

    def codes(self, x: Tensor) -> Tensor:
        """int8 or uint8."""
        return self.grid.codes(x, self.scale)

    def values(self, codes: Tensor) -> Tensor:
        """The values behind codes."""
        return self.grid.values(codes, self.scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.values(self.codes(x))


class IntegerLayer(nn.Module, ABC):
    """A layer on integer codes; see the head of this module for the maths.

    Args:
        weight_codes: integers, output channels first: shape of the weight, or its rows.
        weight_scale: shape (output channels,), or (output channels, groups).
        weight_grid: where `weight_codes` come from.
        bias: shape (output channels,), or None.
        activation_scale: shape (), or None where only the weights are quantized.
        activation_grid: given together with `activation_scale`.
    """

    weight_codes: Tensor
    weight_scale: Tensor
    activation_scale: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        weight_codes: Tensor,
        weight_scale: Tensor,
        weight_grid: Grid,
        bias: Tensor | None,
        activation_scale: Tensor | None = None,
        activation_grid: Grid | None = None,
    ) -> None:
        super().__init__()
        self.weight_grid = weight_grid
        self.activation_grid = activation_grid
        self.register_buffer("weight_codes", weight_codes.to(weight_grid.carrier))
        self.register_buffer("weight_scale", weight_scale)
        self.register_buffer("activation_scale", activation_scale)
        self.register_buffer("bias", bias)

    @property
    def weight(self) -> Tensor:
        """The codes, for who reads a layer's weight; see `readers.py`."""
        return self.weight_codes

    @abstractmethod
    def operate(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The linear operation itself, in whatever number format its arguments have."""

    @abstractmethod
    def per_channel(self, values: Tensor) -> Tensor:
        """Shape (output channels,) brought to the shape that broadcasts over an output."""

    def activation_codes(self, x: Tensor) -> Tensor:
        """The integer codes of an input, int8 or uint8; the input itself in a weight-only layer."""
        if self.activation_scale is None or self.activation_grid is None:
            return x
        return self.activation_grid.codes(x, self.activation_scale)

    def activation_values(self, codes: Tensor, like: Tensor) -> Tensor:
        """The input behind `activation_codes`, in the dtype of another tensor; the codes in a weight-only layer."""
        if self.activation_scale is None or self.activation_grid is None:
            return codes
        return self.activation_grid.values(codes, self.activation_scale).to(like.dtype)

    def accumulator(self) -> torch.dtype:
        """float32 where every partial sum of codes is exact in it, else float64."""
        if self.activation_grid is None or self.weight_scale.dim() == 2:
            return self.weight_scale.dtype
        reach = self.weight_codes.flatten(1).double().abs().sum(dim=1).max().item() * self.activation_grid.largest
        return torch.float32 if reach < _FLOAT32_EXACT else torch.float64

    def scaled_weight(self) -> Tensor:
        """The weight, each group by its own scale; the codes themselves where a channel has one scale."""
        if self.weight_scale.dim() == 1:
            return self.weight_codes
        groups = self.weight_codes.reshape(self.weight_scale.numel(), -1)
        return dequantize(groups, self.weight_scale.reshape(-1)).reshape(self.weight_codes.shape)

    def forward(self, x: Tensor) -> Tensor:
        dtype = self.accumulator()
        codes = self.activation_codes(x).to(dtype)
        if self.activation_grid is not None and self.activation_grid.zero_point:
            codes -= self.activation_grid.zero_point
        sums = self.operate(codes, self.scaled_weight().to(dtype), None).to(x.dtype)
        scale = torch.ones_like(self.weight_scale[:, 0]) if self.weight_scale.dim() == 2 else self.weight_scale
        if self.activation_scale is not None:
            scale = scale * self.activation_scale
        y = sums * self.per_channel(scale)
        return y if self.bias is None else y + self.per_channel(self.bias)

    def extra_repr(self) -> str:
        activation = "float" if self.activation_grid is None else f"{self.activation_grid.bits} bits"
        shape = tuple(self.weight_codes.shape)
        return f"{shape}, weights {self.weight_grid.bits} bits, activations {activation}"


class _IntegerConv(IntegerLayer):
    """What convolutions over one to three axes share: input (N, C, ...), output (N, O, ...)."""

    def __init__(self, geometry: Any, *codes: Any) -> None:
        super().__init__(*codes)
        self.stride = geometry.stride
        self.dilation = geometry.dilation
        self.groups = geometry.groups
        self.padding = geometry.padding

    def per_channel(self, values: Tensor) -> Tensor:
        return values.reshape(-1, *[1] * (self.weight_codes.dim() - 2))


class IntegerConv(_IntegerConv):
    """`IntegerLayer` as a convolution."""

    def __init__(self, geometry: Any, *codes: Any) -> None:
        super().__init__(geometry, *codes)
        self.padding_mode = geometry.padding_mode
        if self.padding_mode != "zeros":
            self.padding = 0
        self._border = list(geometry._reversed_padding_repeated_twice)

    def operate(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.padding_mode != "zeros":
            x = F.pad(x, self._border, mode=self.padding_mode)
        convolve = (F.conv1d, F.conv2d, F.conv3d)[weight.dim() - 3]
        y: Tensor = convolve(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        return y


class IntegerConvTranspose(_IntegerConv):
    """`IntegerLayer` as a transposed convolution; the codes are rows (O, I / groups, ...), see `swap_channels`."""

    def __init__(self, geometry: Any, *codes: Any) -> None:
        super().__init__(geometry, *codes)
        self.output_padding = geometry.output_padding

    def operate(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        own = swap_channels(weight, self.groups)
        return CONV_TRANSPOSE[weight.dim() - 3](
            x, own, bias, self.stride, self.padding, self.output_padding, self.groups, self.dilation
        )


class IntegerLinear(IntegerLayer):
    """`IntegerLayer` as a linear map: input (..., I), output (..., O)."""

    def __init__(self, geometry: nn.Module, *codes: Any) -> None:
        super().__init__(*codes)

    def operate(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def per_channel(self, values: Tensor) -> Tensor:
        return values


class IntegerEmbedding(IntegerLayer):
    """`IntegerLayer` as a table of codes: input (...) of indices, output (..., D)."""

    def __init__(self, geometry: nn.Embedding, *codes: Any) -> None:
        super().__init__(*codes)

    def operate(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.embedding(x, weight)

    def per_channel(self, values: Tensor) -> Tensor:
        return values[:, None]

    def forward(self, x: Tensor) -> Tensor:
        if self.weight_scale.dim() == 2:
            return F.embedding(x, self.scaled_weight())
        return F.embedding(x, self.weight_codes).to(self.weight_scale.dtype) * F.embedding(
            x, self.per_channel(self.weight_scale)
        )


class IntegerSubclass(IntegerLayer):
    """`IntegerLayer` around the forward of a subclass, which must end in its convolution or linear map.

    That forward runs on codes, and the weight it brings to its operation is left aside.
    """

    def __init__(self, geometry: nn.Module, *codes: Any) -> None:
        super().__init__(*codes)
        layer = geometry.to_float() if isinstance(geometry, QuantLayer) else copy.copy(geometry)
        own = layer.get_parameter("weight")
        layer._parameters = {**layer._parameters, "weight": nn.Parameter(own.new_zeros(()).expand(own.shape))}
        # in no state_dict: nothing of its tensors is read
        self.__dict__["_layer"] = layer.requires_grad_(False)

    def operate(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        def on_codes(operation: Any, x: Tensor, _: Tensor, own_bias: Any = None, *rest: Any, **named: Any) -> Tensor:
            named.pop("bias", None)
            y: Tensor = operation(x, weight, bias, *rest, **named)
            return y

        layer = self.__dict__["_layer"]
        with AtCall(operation_of(layer), on_codes):
            y: Tensor = layer.forward(x)
        return y

    def per_channel(self, values: Tensor) -> Tensor:
        return values.reshape(-1, *[1] * (self.weight_codes.dim() - 2))


def integer_layer(geometry: nn.Module, *codes: Any) -> IntegerLayer:
    """An `IntegerLayer` in the place of a layer: its stride, padding and so on, with the given codes."""
    if isinstance(geometry, QuantSubclass) or (not isinstance(geometry, QuantLayer) and is_subclass(geometry)):
        return IntegerSubclass(geometry, *codes)
    if isinstance(geometry, nn.modules.conv._ConvTransposeNd):
        return IntegerConvTranspose(geometry, *codes)
    if isinstance(geometry, nn.modules.conv._ConvNd):
        return IntegerConv(geometry, *codes)
    if isinstance(geometry, nn.Embedding):
        return IntegerEmbedding(geometry, *codes)
    return IntegerLinear(geometry, *codes)


def row_shape(geometry: Any) -> list[int]:
    """Shape of the codes of a layer, output channels first."""
    groups = geometry.groups if isinstance(geometry, nn.modules.conv._ConvTransposeNd) else None
    weight = geometry.weight
    return list(weight.shape if groups is None else swap_channels(weight, groups).shape)
