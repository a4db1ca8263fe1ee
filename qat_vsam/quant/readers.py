"""Modules that multiply by the weight of a child instead of calling it: a class of theirs that calls it.

    F.linear(x, child.weight, bias)   within their forward is   child(x), with that bias

So the child can be quantized as any other layer. Without quantization nothing is changed, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from qat_vsam.quant.layers import take_over
from qat_vsam.quant.replace import replace_modules
from qat_vsam.quant.subclass import AtCall

# By name, so that nobody's package is imported.
READERS = {
    "torchvision.models.swin_transformer.ShiftedWindowAttention",
    "torchvision.models.swin_transformer.ShiftedWindowAttentionV2",
    "timm.models.beit.Attention",
    "timm.models.eva.EvaAttention",
    "timm.models.swin_transformer_v2.WindowAttention",
}
_MADE: dict[type[nn.Module], type[CallingModule]] = {}


class CallingModule(nn.Module):
    """A reader that calls; its classes are made by `calling_class`, and it is pickled by way of that function."""

    _reader: type[nn.Module]

    def forward(self, *args: Any, **options: Any) -> Any:
        """As the reader's."""
        # a plain linear layer may as well be read; others have a `weight` for this very purpose
        layers = {id(child.weight): child for child in self.children() if _is_other(child)}

        def call(linear: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Any = None) -> Tensor:
            child: Any = layers.get(id(weight))
            if child is None:
                return linear(x, weight, bias)
            # what the reader made of the bias, in front of the registered one for this call
            child.__dict__["bias"] = bias
            try:
                y: Tensor = child(x)
            finally:
                del child.__dict__["bias"]
            return y

        with AtCall(F.linear, call):
            return super().forward(*args, **options)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _blank, (self._reader,), self.__dict__


def calling_class(kind: type[nn.Module]) -> type[CallingModule]:
    """The class of a reader's twin that calls."""
    if kind not in _MADE:
        names = {"_reader": kind, "__module__": __name__}
        _MADE[kind] = type(f"Calling{kind.__name__}", (CallingModule, kind), names)
    return _MADE[kind]


def call_children(model: nn.Module) -> dict[nn.Module, nn.Module]:
    """Put a twin that calls in the place of every reader, in place, but for the root.

    Returns:
        What was put in the place of what; `replace_modules` undoes it.
    """
    made: dict[nn.Module, nn.Module] = {
        module: take_over(module, calling_class(type(module)))
        for module in model.modules()
        if module is not model and _reads(module)
    }
    replace_modules(model, made)
    return {calling: module for module, calling in made.items()}


def _reads(module: nn.Module) -> bool:
    kind = type(module)
    # those of timm call a layer that has no biases of its own, or whose biases are added behind it
    calls = getattr(module, "q_bias", "") is None or getattr(module, "qkv_bias_separate", False)
    return f"{kind.__module__}.{kind.__qualname__}" in READERS and not calls


def _is_other(child: nn.Module) -> bool:
    return type(child) is not nn.Linear and isinstance(getattr(child, "weight", None), Tensor)


def _blank(kind: type[nn.Module]) -> nn.Module:
    """An empty module for unpickling to fill."""
    made = calling_class(kind)
    return made.__new__(made)
