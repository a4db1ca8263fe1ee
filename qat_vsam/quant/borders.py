"""Quantizers at the border of a module: of what it returns, or of its first argument.

The module keeps its class and name. The quantizer is its child `quantizer_after` or `quantizer_before`, and a hook
without state calls whatever child has that name, so that deepcopy, pickle and exports that put another module in the
quantizer's place need nothing to be said.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from qat_vsam.quant.quantizers import Quantizer

Side = Literal["before", "after"]
_PREFIX = "quantizer_"


@dataclass(frozen=True)
class Border:
    """Where a tensor passes.

    Attributes:
        module: its name in the model.
        side: "after" for what it returns, "before" for its first argument.
        copies: whether what reads the tensor overwrites it, as `out += shortcut` does. What a quantizer returns is
            kept for its backward pass, so a copy is handed out then.
    """

    module: str
    side: Side
    copies: bool = False

    @property
    def name(self) -> str:
        """Name of the quantizer in the model."""
        return f"{self.module}.{_PREFIX}{self.side}"


def put_at(module: nn.Module, border: Border, quantizer: nn.Module) -> None:
    """Let the tensors that pass this border of the module pass the quantizer too; a second one takes its place.

    Example:
        >>> relu = nn.ReLU()
        >>> put_at(relu, Border("relu", "after"), nn.Hardtanh(0, 1))
        >>> relu(torch.tensor([-1.0, 0.5, 3.0]))
        tensor([0.0000, 0.5000, 1.0000])
    """
    child = _PREFIX + border.side
    present = child in module._modules
    module._modules[child] = quantizer
    if present:
        return
    if border.side == "before":
        module.register_forward_pre_hook(_copy_before if border.copies else _quantize_before)
    else:
        module.register_forward_hook(_copy_after if border.copies else _quantize_after)


def borders(model: nn.Module) -> Iterator[tuple[Border, nn.Module]]:
    """Every border of the model with what quantizes there, in module order."""
    sides: tuple[Side, ...] = ("before", "after")
    for name, module in model.named_modules():
        for side in sides:
            if (child := _PREFIX + side) in module._modules:
                quantizer = module.get_submodule(child)
                copying = (_copy_before, _copy_after)
                hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
                yield Border(name, side, any(hook in copying for hook in hooks)), quantizer


def is_border(name: str) -> bool:
    """Whether a name is that of a quantizer at a border."""
    return name.split(".")[-1] in (f"{_PREFIX}before", f"{_PREFIX}after")


def border_quantizers(model: nn.Module) -> dict[Quantizer, str]:
    """Every quantizer at a border once, with its first name."""
    found: dict[Quantizer, str] = {}
    for border, quantizer in borders(model):
        if isinstance(quantizer, Quantizer):
            found.setdefault(quantizer, border.name)
    return found


def _quantize_before(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (module.quantizer_before(args[0]), *args[1:])


def _quantize_after(module: Any, args: tuple[Any, ...], y: Tensor) -> Tensor:
    y_hat: Tensor = module.quantizer_after(y)
    return y_hat


def _copy_before(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (_apart(module.quantizer_before(args[0]), args[0]), *args[1:])


def _copy_after(module: Any, args: tuple[Any, ...], y: Tensor) -> Tensor:
    return _apart(module.quantizer_after(y), y)


def _apart(x_hat: Tensor, x: Tensor) -> Tensor:
    return x_hat if x_hat is x else torch.clone(x_hat)
