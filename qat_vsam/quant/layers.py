"""Where quantizers sit: layers that quantize their weight and their input.

    y = layer(input_quantizer(x), weight_quantizer(weight) + weight_offset)

Padding is applied after the input quantizer; zero is on every grid of activations but {-s, s}. A weight is quantized
as rows, one for each output channel, (O, ...): the weight itself but for transposed convolutions, whose output
channels lie along another axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Self, TypeVar

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from qat_vsam.errors import ConfigError, explain
from qat_vsam.quant.kernels import along_axis_0
from qat_vsam.quant.quantizers import Quantizer, make_quantizer
from qat_vsam.quant.saved_codes import keeping_codes
from qat_vsam.quant.statistics import StepSizeMethod
from qat_vsam.quant.tensor_spec import TensorSpec

_Module = TypeVar("_Module", bound=nn.Module)
# by the number of axes of the image, from 1
CONV_TRANSPOSE: tuple[Callable[..., Tensor], ...] = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


class QuantLayer(nn.Module):
    """What all quantized layers share.

    Attributes:
        weight_quantizer: always there; its first step size is read from the weight.
        input_quantizer: None for weight-only quantization. Layers that read the same tensor may share one.
        input_is_quantized: whether the input comes quantized, by this input quantizer at another module's border.
        reads_again: whether another layer reads the input before this one; a range that follows has moved then.
        weight_offset: None, or a tensor of the weight's shape that is added behind the weight quantizer. Its
            gradient is the gradient at the quantized weight. Belongs to no state_dict.
    """

    weight: Tensor
    weight_quantizer: Quantizer
    input_quantizer: Quantizer | None
    input_is_quantized: bool
    reads_again: bool
    weight_offset: Tensor | None
    _float_class: type[nn.Module]

    def __init__(
        self, *args: Any, weight_spec: TensorSpec, activation_spec: TensorSpec | None = None, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self._add_quantizers(weight_spec, activation_spec)

    def _add_quantizers(self, weight_spec: TensorSpec, activation_spec: TensorSpec | None) -> None:
        device, dtype = self.weight.device, self.weight.dtype
        rows = self.rows(self.weight)
        step_sizes = len(rows)
        if weight_spec.granularity == "per_group":
            step_sizes *= groups_of_a_row(rows[0].numel(), weight_spec.group_size)
        self.weight_quantizer = make_quantizer(weight_spec, "weight", step_sizes, device, dtype)
        self.input_quantizer = None
        if activation_spec is not None:
            self.input_quantizer = make_quantizer(activation_spec, "activation", None, device, dtype)
        self.input_is_quantized = self.reads_again = False
        self.weight_offset = None
        self.initialise_weight_quantizer()

    @classmethod
    def from_float(cls, module: nn.Module, weight_spec: TensorSpec, activation_spec: TensorSpec | None) -> Self:
        """The quantized twin of a float layer.

        It holds the same Parameter objects, hooks, training flag and attributes; only quantizers are added.

        Args:
            module: the float layer, an `nn.Conv2d` for QuantConv2d and so on.
            weight_spec: how the weight is quantized.
            activation_spec: how the input is quantized, None to leave it in float.
        """
        layer = take_over(module, cls)
        layer._add_quantizers(weight_spec, activation_spec)
        return layer

    def to_float(self) -> nn.Module:
        """The float layer again, with the same Parameter objects; weights as they are, not on the grid."""
        layer = take_over(self, self._float_class)
        for name in ("weight_quantizer", "input_quantizer", "input_is_quantized", "reads_again", "weight_offset"):
            # an input quantizer that is None is a plain attribute
            layer._modules.pop(name, None)
            layer.__dict__.pop(name, None)
        return layer

    def initialise_weight_quantizer(self, method: StepSizeMethod = "mse") -> None:
        """Set the weight's step sizes from the weight as it is now."""
        rows = self.rows(self.float_weight()).detach()
        self.weight_quantizer.initialise(self.weight_quantizer.statistics(rows), method)

    def float_weight(self) -> Tensor:
        """What the weight quantizer reads: the weight, or what a subclass makes of it."""
        return self.weight

    def rows(self, weight: Tensor) -> Tensor:
        """A tensor of the weight's shape with the output channels along axis 0."""
        return weight

    def from_rows(self, rows: Tensor) -> Tensor:
        """What `rows` was made from."""
        return rows

    def quantized_weight(self) -> Tensor:
        """The weight on its grid, without the offset; carries a graph."""
        return self.from_rows(self.weight_quantizer(self.rows(self.float_weight())))

    def weight_codes(self) -> Tensor:
        """The integer codes of the weight, in the weight's shape."""
        return self.from_rows(self.row_codes())

    def row_codes(self) -> Tensor:
        """The integer codes of the weight, output channels along axis 0."""
        return self.weight_quantizer.codes(self.rows(self.float_weight()))

    def weight_step_size(self) -> Tensor:
        """The weight quantizer's step size, in a shape that goes with the weight's; carries a graph."""
        step = self.weight_quantizer.step()
        if step.dim() == 0:
            return step
        rows = self.rows(self.weight)
        sharing = self.weight_quantizer.sharing(rows)
        return self.from_rows(along_axis_0(step, sharing).expand(sharing.shape).reshape(rows.shape))

    def _used_weight(self) -> Tensor:
        weight = self.quantized_weight()
        return weight if self.weight_offset is None else weight + self.weight_offset

    def _used_input(self, x: Tensor) -> Tensor:
        quantizer: Any = self.input_quantizer
        if quantizer is None or self.input_is_quantized:
            return x
        held = self.reads_again and quantizer.updates_state
        if held:
            quantizer.updates_state = False
        try:
            x_hat: Tensor = quantizer(x)
        finally:
            if held:
                quantizer.updates_state = True
        return x_hat


class _QuantConv(QuantLayer):
    """What convolutions share."""

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, ...) -> (batch, out_channels, ...)."""
        convolution: Any = self
        x, weight = self._used_input(x), self._used_weight()
        with keeping_codes(x, weight):
            y: Tensor = convolution._conv_forward(x, weight, self.bias)
        return y


class QuantConv1d(_QuantConv, nn.Conv1d):
    """`nn.Conv1d` with a quantized weight and input; arguments as for `QuantConv2d`."""

    _float_class = nn.Conv1d


class QuantConv2d(_QuantConv, nn.Conv2d):
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


class QuantConv3d(_QuantConv, nn.Conv3d):
    """`nn.Conv3d` with a quantized weight and input; arguments as for `QuantConv2d`."""

    _float_class = nn.Conv3d


class _QuantConvTranspose(QuantLayer):
    """What transposed convolutions share: their weight is (I, O / groups, ...), its rows (O, I / groups, ...)."""

    groups: int

    def rows(self, weight: Tensor) -> Tensor:
        return swap_channels(weight, self.groups)

    def from_rows(self, rows: Tensor) -> Tensor:
        return swap_channels(rows, self.groups)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(batch, in_channels, ...) -> (batch, out_channels, ...)."""
        layer: Any = self
        axes, weight = self.weight.dim() - 2, self._used_weight()
        padding = layer._output_padding(
            x, output_size, layer.stride, layer.padding, layer.kernel_size, axes, layer.dilation
        )
        convolve, x = CONV_TRANSPOSE[axes - 1], self._used_input(x)
        with keeping_codes(x, weight):
            return convolve(x, weight, self.bias, layer.stride, layer.padding, padding, self.groups, layer.dilation)


class QuantConvTranspose1d(_QuantConvTranspose, nn.ConvTranspose1d):
    """`nn.ConvTranspose1d` with a quantized weight and input; arguments as for `QuantConv2d`."""

    _float_class = nn.ConvTranspose1d


class QuantConvTranspose2d(_QuantConvTranspose, nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` with a quantized weight and input; arguments as for `QuantConv2d`."""

    _float_class = nn.ConvTranspose2d


class QuantConvTranspose3d(_QuantConvTranspose, nn.ConvTranspose3d):
    """`nn.ConvTranspose3d` with a quantized weight and input; arguments as for `QuantConv2d`."""

    _float_class = nn.ConvTranspose3d


class QuantLinear(QuantLayer, nn.Linear):
    """`nn.Linear` with a quantized weight and input; arguments as for `QuantConv2d`."""

    _float_class = nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        x, weight = self._used_input(x), self._used_weight()
        with keeping_codes(x, weight):
            return F.linear(x, weight, self.bias)


class QuantEmbedding(QuantLayer, nn.Embedding):
    """`nn.Embedding` with a quantized table; per channel means one step size for each entry.

    Its input, indices, is not quantized: `activation_spec` is not looked at. Arguments as for `nn.Embedding`, but for
    `max_norm`, which rewrites the table in place, and `sparse`.

    Example:
        >>> import torch
        >>> from qat_vsam.quant import QuantEmbedding, TensorSpec
        >>> spec = TensorSpec(bits=8, signed=True, granularity="per_channel")
        >>> QuantEmbedding(10, 4, weight_spec=spec)(torch.tensor([1, 2])).shape
        torch.Size([2, 4])
    """

    _float_class = nn.Embedding

    def _add_quantizers(self, weight_spec: TensorSpec, activation_spec: TensorSpec | None) -> None:
        super()._add_quantizers(weight_spec, None)

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (..., embedding_dim)."""
        return F.embedding(x, self._used_weight(), self.padding_idx)


def groups_of_a_row(weights: int, group_size: int) -> int:
    """How many groups the weights of an output channel make.

    Raises:
        ConfigError: they make no whole number of groups.
    """
    if weights % group_size:
        divisors = [size for size in range(1, weights + 1) if weights % size == 0]
        nearest = min(divisors, key=lambda size: abs(size - group_size))
        expected = f"a divisor of the {weights} weights of an output channel"
        advice = f"use {nearest}, or give this layer an override"
        raise ConfigError(explain("group_size", group_size, expected, advice))
    return weights // group_size


def swap_channels(weight: Tensor, groups: int) -> Tensor:
    """(I, O / groups, ...) -> (O, I / groups, ...), and the other way round: channels of a group stay together.

    Example:
        >>> import torch
        >>> swap_channels(torch.zeros(4, 3, 5), groups=2).shape
        torch.Size([6, 2, 5])
    """
    first, second, *kernel = weight.shape
    blocks = weight.reshape(groups, first // groups, second, *kernel).transpose(1, 2)
    return blocks.reshape(groups * second, first // groups, *kernel)


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


def take_over(module: nn.Module, new_class: type[_Module]) -> _Module:
    """A module of another class with everything that `module` carries, hooks and foreign attributes included.

    The dictionaries of children and parameters are copied, so that one of the two can gain or lose entries;
    those of hooks stay the same objects, so that the handles given out for them still remove them.
    """
    new = new_class.__new__(new_class)
    new.__dict__.update(module.__dict__)
    for name in ("_parameters", "_buffers", "_modules"):
        new.__dict__[name] = dict(module.__dict__[name])
    return new
