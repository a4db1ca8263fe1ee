"""Where quantizers sit: convolution and linear layers that quantize their weight and their input.

    y = layer(input_quantizer(x), weight_quantizer(weight) + weight_offset)

Padding is applied after the input quantizer; zero is on every grid but {-s, s}.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self, TypeVar

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from qat_vsam.quant.quantizers import Quantizer, make_quantizer
from qat_vsam.quant.statistics import StepSizeMethod, TensorStatistics
from qat_vsam.quant.tensor_spec import TensorSpec

_Module = TypeVar("_Module", bound=nn.Module)


class QuantLayer(nn.Module):
    """What `QuantConv2d` and `QuantLinear` share.

    Attributes:
        weight_quantizer: always there; its first step size is read from the weight.
        input_quantizer: None for weight-only quantization. Layers that read the same tensor may share one.
        weight_offset: None, or a tensor of the weight's shape that is added behind the weight quantizer. Its
            gradient is the gradient at the quantized weight. Belongs to no state_dict.
    """

    weight: Tensor
    weight_quantizer: Quantizer
    input_quantizer: Quantizer | None
    weight_offset: Tensor | None
    _float_class: type[nn.Module]

    def _add_quantizers(self, weight_spec: TensorSpec, activation_spec: TensorSpec | None) -> None:
        device, dtype = self.weight.device, self.weight.dtype
        self.weight_quantizer = make_quantizer(weight_spec, "weight", self.weight.shape[0], device, dtype)
        self.input_quantizer = None
        if activation_spec is not None:
            self.input_quantizer = make_quantizer(activation_spec, "activation", None, device, dtype)
        self.weight_offset = None
        self.initialise_weight_quantizer()

    @classmethod
    def from_float(cls, module: nn.Module, weight_spec: TensorSpec, activation_spec: TensorSpec | None) -> Self:
        """The quantized twin of a float layer.

        It holds the same Parameter objects, hooks, training flag and attributes; only quantizers are added.

        Args:
            module: an `nn.Conv2d` for QuantConv2d, an `nn.Linear` for QuantLinear.
            weight_spec: how the weight is quantized.
            activation_spec: how the input is quantized, None to leave it in float.
        """
        layer = _take_over(module, cls)
        layer._add_quantizers(weight_spec, activation_spec)
        return layer

    def to_float(self) -> nn.Module:
        """The float layer again, with the same Parameter objects; weights as they are, not on the grid."""
        layer = _take_over(self, self._float_class)
        for name in ("weight_quantizer", "input_quantizer"):
            del layer._modules[name]
        del layer.__dict__["weight_offset"]
        return layer

    def initialise_weight_quantizer(self, method: StepSizeMethod = "mse") -> None:
        """Set the weight's step sizes from the weight as it is now."""
        statistics = TensorStatistics(per_channel=self.weight_quantizer.granularity == "per_channel")
        statistics.update(self.weight)
        self.weight_quantizer.initialise(statistics, method)

    def quantized_weight(self) -> Tensor:
        """The weight on its grid, without the offset; carries a graph."""
        weight: Tensor = self.weight_quantizer(self.weight)
        return weight

    def weight_codes(self) -> Tensor:
        """The integer codes of the weight, in the weight's shape."""
        return self.weight_quantizer.codes(self.weight)

    def weight_step_size(self) -> Tensor:
        """The weight quantizer's step size, in a shape that goes with the weight's; carries a graph."""
        scale = self.weight_quantizer.step()
        return scale if scale.dim() == 0 else scale.view(-1, *[1] * (self.weight.dim() - 1))

    def _used_weight(self) -> Tensor:
        weight = self.quantized_weight()
        return weight if self.weight_offset is None else weight + self.weight_offset

    def _used_input(self, x: Tensor) -> Tensor:
        if self.input_quantizer is None:
            return x
        x_hat: Tensor = self.input_quantizer(x)
        return x_hat


class QuantConv2d(QuantLayer, nn.Conv2d):
    """`nn.Conv2d` with a quantized weight and input.

    Args:
        *args, **options: as for `nn.Conv2d`; every padding mode, group and dilation is taken.
        weight_spec: how the weight is quantized.
        activation_spec: how the input is quantized, None to leave it in float.

    Example:
        >>> from qat_vsam.quant import QuantConv2d, TensorSpec
        >>> spec = TensorSpec(bits=4, signed=True, granularity="per_channel")
        >>> layer = QuantConv2d(3, 8, 3, padding=1, weight_spec=spec)
        >>> layer.weight_codes().abs().max() <= 8
        tensor(True)
    """

    _float_class = nn.Conv2d

    def __init__(
        self, *args: Any, weight_spec: TensorSpec, activation_spec: TensorSpec | None = None, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self._add_quantizers(weight_spec, activation_spec)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, height, width) -> (batch, out_channels, height', width')."""
        y: Tensor = self._conv_forward(self._used_input(x), self._used_weight(), self.bias)
        return y


class QuantLinear(QuantLayer, nn.Linear):
    """`nn.Linear` with a quantized weight and input; arguments as for `QuantConv2d`."""

    _float_class = nn.Linear

    def __init__(
        self, *args: Any, weight_spec: TensorSpec, activation_spec: TensorSpec | None = None, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self._add_quantizers(weight_spec, activation_spec)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        return F.linear(self._used_input(x), self._used_weight(), self.bias)


def quant_layers(model: nn.Module) -> Iterator[tuple[str, QuantLayer]]:
    """The quantized layers with their names, in module order, each once."""
    for name, module in model.named_modules():
        if isinstance(module, QuantLayer):
            yield name, module


def input_quantizers(model: nn.Module) -> dict[Quantizer, str]:
    """Every input quantizer once, with the name of the first layer that reads through it."""
    found: dict[Quantizer, str] = {}
    for name, layer in quant_layers(model):
        if layer.input_quantizer is not None:
            found.setdefault(layer.input_quantizer, name)
    return found


def _take_over(module: nn.Module, new_class: type[_Module]) -> _Module:
    """A module of another class with everything that `module` carries, hooks and foreign attributes included.

    The dictionaries of children and parameters are copied, so that one of the two can gain or lose entries;
    those of hooks stay the same objects, so that the handles given out for them still remove them.
    """
    new = new_class.__new__(new_class)
    new.__dict__.update(module.__dict__)
    for name in ("_parameters", "_buffers", "_modules"):
        new.__dict__[name] = dict(module.__dict__[name])
    return new
