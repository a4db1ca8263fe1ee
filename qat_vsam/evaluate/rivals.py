"""The same quantization by other means, to time ours against: PyTorch's operator, and brevitas' layers.

Both start from a prepared and calibrated model and take over its policy layer by layer (bits, sign,
granularity, where a quantizer sits), so that only the implementation differs. They are for measuring time,
not for training: their grids and gradients differ in details, e.g. brevitas leaves out the most negative
weight code.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from qat_vsam.errors import MissingDependencyError, explain
from qat_vsam.quant import QuantConv2d, Quantizer, QuantLayer, quant_layers


class NativeQuantizer(nn.Module):
    """A learned step size by the operators `torch._fake_quantize_learnable_per_{tensor,channel}_affine`.

    The straight-through gradient of these is masked on the rounded value, so it differs from LSQ's at the
    borders.

    Args:
        quantizer: gives step size, integer range, granularity and role.
    """

    zero_point: Tensor

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        scale = quantizer.scale().detach().reshape(-1)
        self.step_size = nn.Parameter(scale.clone())
        self.register_buffer("zero_point", torch.zeros_like(scale))
        self.q_min, self.q_max = quantizer.q_min, quantizer.q_max
        self.per_channel = quantizer.granularity == "per_channel"
        self.is_weight = quantizer.role == "weight"

    def forward(self, x: Tensor) -> Tensor:
        elements = x.numel() / (self.step_size.numel() if self.is_weight else len(x))
        factor = 1 / math.sqrt(elements * self.q_max)
        if self.per_channel:
            return torch._fake_quantize_learnable_per_channel_affine(
                x, self.step_size, self.zero_point, 0, self.q_min, self.q_max, factor
            )
        return torch._fake_quantize_learnable_per_tensor_affine(
            x, self.step_size, self.zero_point, self.q_min, self.q_max, factor
        )


def use_native_operator(model: nn.Module) -> nn.Module:
    """Replace every quantizer of a prepared model, in place, by PyTorch's native learnable operator.

    Args:
        model: prepared and calibrated.

    Returns:
        The model.

    Example:
        >>> from qat_vsam.quant import QuantSpec, calibrate, prepare
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
        >>> _ = prepare(model, QuantSpec.preset("w4a4"))
        >>> calibrate(model, [torch.randn(8, 4)])
        >>> type(use_native_operator(model)[1].weight_quantizer).__name__
        'NativeQuantizer'
    """
    for _, layer in list(quant_layers(model)):
        # assigned as modules: these are no Quantizers, and the layers only ever call them
        layer._modules["weight_quantizer"] = NativeQuantizer(layer.weight_quantizer)
        if layer.input_quantizer is not None:
            layer._modules["input_quantizer"] = NativeQuantizer(layer.input_quantizer)
    return model


def use_brevitas_layers(model: nn.Module, sample: Tensor) -> nn.Module:
    """Replace every quantized layer of a prepared model, in place, by brevitas' layer with learned scales.

    Args:
        model: prepared and calibrated; the new layers hold the same weights.
        sample: images (B, C, H, W); brevitas reads its first activation scales from them, in one training
            step.

    Returns:
        The model.

    Raises:
        MissingDependencyError: brevitas is not installed.
    """
    for name, layer in list(quant_layers(model)):
        model.set_submodule(name, _brevitas_layer(layer))
    # the first pass in training mode collects statistics, the second turns them into learned scales
    for _ in range(2):
        model(sample)
    return model


def _brevitas_layer(layer: QuantLayer) -> nn.Module:
    try:
        import brevitas.nn as brevitas_nn
        from brevitas.inject.enum import ScalingImplType
        from brevitas.quant.scaled_int import (
            Int8ActPerTensorFloat,
            Int8WeightPerChannelFloat,
            Uint8ActPerTensorFloat,
        )
    except ImportError as error:
        raise MissingDependencyError(
            explain("brevitas", "no such package", "an installed brevitas", "pip install brevitas")
        ) from error
    weight_quant = Int8WeightPerChannelFloat.let(
        bit_width=layer.weight_quantizer.bits, scaling_impl_type=ScalingImplType.PARAMETER_FROM_STATS
    )
    input_quant: Any = None
    if layer.input_quantizer is not None:
        kind = Int8ActPerTensorFloat if layer.input_quantizer.signed else Uint8ActPerTensorFloat
        input_quant = kind.let(bit_width=layer.input_quantizer.bits, collect_stats_steps=1)
    common = {"bias": layer.bias is not None, "weight_quant": weight_quant, "input_quant": input_quant}
    new: nn.Module
    if isinstance(layer, QuantConv2d):
        new = brevitas_nn.QuantConv2d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            groups=layer.groups,
            **common,
        )
    else:
        new = brevitas_nn.QuantLinear(layer.in_features, layer.out_features, **common)
    new.weight, new.bias = layer.weight, layer.bias
    return new.to(layer.weight.device)
