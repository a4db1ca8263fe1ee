"""The same quantization by PyTorch's own operator, to time ours against.

It starts from a prepared and calibrated model and takes over its policy layer by layer (bits, sign, granularity,
where a quantizer sits), so that only the implementation differs. It is for measuring time, not for training: its
gradients differ in details. Brevitas' layers, the other rival, come from `quant.backends.brevitas`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from qat_vsam.quant import Quantizer, quant_layers


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
