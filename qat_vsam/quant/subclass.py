"""Subclasses of convolutions and linear layers, quantized around a forward of their own.

A `Conv2dSame` pads before it convolves, a `StdConv2d` standardises its weight. Their forward runs as it is, on a
quantized input, and the weight is quantized where it is handed to the convolution:

    y = forward(input_quantizer(x)),   where conv2d(x', w, ...) is conv2d(x', weight_quantizer(w) + weight_offset, ...)

So a standardised weight lies on the grid after it was standardised. With quantizers off nothing is changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from qat_vsam.quant.layers import QuantLayer
from qat_vsam.quant.saved_codes import keeping_codes

SUBCLASSED: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: F.conv1d,
    nn.Conv2d: F.conv2d,
    nn.Conv3d: F.conv3d,
    nn.Linear: F.linear,
}
_MADE: dict[type[nn.Module], type[QuantSubclass]] = {}


class AtCall(TorchFunctionMode):
    """Within it, calls of an operation such as `F.conv2d` are answered by `call(operation, x, weight, ...)`."""

    def __init__(self, operation: Callable[..., Tensor], call: Callable[..., Tensor]) -> None:
        super().__init__()
        self._operation = operation
        self._call = call

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is not self._operation:
            return func(*args, **kwargs)
        named = [kwargs.pop(name) for name in ("input", "weight")[len(args) :]]
        return self._call(func, *args, *named, **kwargs)


class QuantSubclass(QuantLayer):
    """A quantized layer that keeps the forward of its float class; see the head of this module.

    Its classes are made by `quantized_subclass`; it is pickled by way of that function.
    """

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Any:
        """As the float layer's."""
        with AtCall(operation_of(self), self._on_quantized):
            return super().forward(self._used_input(x), *args, **options)

    def _on_quantized(
        self, operation: Callable[..., Tensor], x: Tensor, weight: Tensor, *rest: Any, **named: Any
    ) -> Tensor:
        quantized: Tensor = self.weight_quantizer(weight)
        if self.weight_offset is not None:
            quantized = quantized + self.weight_offset
        with keeping_codes(x, quantized):
            return operation(x, quantized, *rest, **named)

    def float_weight(self) -> Tensor:
        calls = _calls(self, lambda x: super(QuantSubclass, self).forward(x))
        return calls[0][0]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _blank, (self._float_class,), self.__dict__


def quantized_subclass(kind: type[nn.Module]) -> type[QuantSubclass]:
    """The quantized class of a subclass of one of `SUBCLASSED`.

    Example:
        >>> class Same(nn.Conv2d):
        ...     def forward(self, x):
        ...         return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias)
        >>> from qat_vsam.quant import QuantSpec, prepare
        >>> model = nn.Sequential(Same(3, 8, 2), nn.Flatten(), nn.Linear(128, 2))
        >>> _ = prepare(model, QuantSpec.preset("w4"))
        >>> type(model[0]).__name__, isinstance(model[0], Same)
        ('QuantSame', True)
    """
    if kind not in _MADE:
        names = {"_float_class": kind, "__module__": __name__}
        _MADE[kind] = type(f"Quant{kind.__name__}", (QuantSubclass, kind), names)
    return _MADE[kind]


def is_subclass(module: nn.Module) -> bool:
    """Whether a module is of a class derived from one of `SUBCLASSED`, and none of these itself."""
    return isinstance(module, tuple(SUBCLASSED)) and type(module) not in SUBCLASSED


def operation_of(layer: nn.Module) -> Callable[..., Tensor]:
    """The function that the base class of a layer calls, such as `F.conv2d`."""
    return next(operation for kind, operation in SUBCLASSED.items() if isinstance(layer, kind))


def cannot_be_met(module: nn.Module) -> str:
    """Why a subclass cannot be quantized where it calls its operation; "" if it can."""
    base = next(kind for kind in SUBCLASSED if isinstance(module, kind))
    why = f"a subclass of {base.__name__} whose forward "
    try:
        calls = _calls(module, module.forward)
    except Exception as error:  # the forward is somebody else's and may raise anything
        return f"{why}fails on zeros ({type(error).__name__})"
    if len(calls) != 1:
        return f"{why}calls {operation_of(module).__name__} {len(calls)} times"
    weight, is_result = calls[0]
    if weight.shape != module.get_parameter("weight").shape:
        return f"{why}computes with a weight of another shape"
    return "" if is_result else f"{why}changes what {operation_of(module).__name__} gives"


def _calls(module: nn.Module, forward: Callable[..., Any]) -> list[tuple[Tensor, bool]]:
    """The weight of each call of the operation in a forward on zeros, and whether its result is the forward's."""
    layer: Any = module
    window: list[int] = []
    if not isinstance(module, nn.Linear):
        window = [1 + (size - 1) * step for size, step in zip(layer.kernel_size, layer.dilation, strict=True)]
    channels = layer.in_features if isinstance(module, nn.Linear) else layer.in_channels
    x = torch.zeros(1, channels, *window, device=layer.weight.device, dtype=layer.weight.dtype)
    weights: list[Tensor] = []
    results: list[Tensor] = []

    def note(operation: Callable[..., Tensor], x: Tensor, weight: Tensor, *rest: Any, **named: Any) -> Tensor:
        weights.append(weight)
        results.append(operation(x, weight, *rest, **named))
        return results[-1]

    with AtCall(operation_of(module), note):
        y = forward(x)
    return [(weight, result is y) for weight, result in zip(weights, results, strict=True)]


def _blank(kind: type[nn.Module]) -> nn.Module:
    """An empty module for unpickling to fill."""
    made = quantized_subclass(kind)
    return made.__new__(made)
