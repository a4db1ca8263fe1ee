"""One quantizer a tensor: layers that read the same tensor are found by one forward pass and share theirs.

A residual block feeds its input to the first convolution and to the shortcut's. A runtime quantizes that
tensor once, so training must too, or the export computes something else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from qat_vsam.quant.layers import QuantLayer, quant_layers


def layers_that_read_the_same_tensor(
    layers: Iterable[tuple[str, nn.Module]], run: Callable[[], object]
) -> list[list[str]]:
    """Groups of at least two layer names whose first input was one and the same tensor while `run` ran.

    Two inputs are the same tensor where memory, shape, strides and version agree: an in-place operation
    between two reads makes them two tensors.
    """
    readers: dict[tuple[object, ...], list[str]] = {}
    # Held until the end, so that no later tensor takes over a freed address.
    alive: list[Tensor] = []

    def note(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            x = inputs[0] if inputs else None
            if isinstance(x, Tensor):
                alive.append(x)
                key = (x.data_ptr(), tuple(x.shape), x.stride(), x.dtype, x._version)
                readers.setdefault(key, []).append(name)

        return hook

    with ExitStack() as stack, torch.no_grad():
        for name, layer in layers:
            stack.callback(layer.register_forward_pre_hook(note(name)).remove)
        run()
    return _merged(readers.values())


def share_input_quantizers(model: nn.Module, groups: Iterable[list[str]]) -> None:
    """Give the layers of each group the input quantizer of its first layer, where their specs are equal."""
    layers = dict(quant_layers(model))
    for group in groups:
        first: dict[object, QuantLayer] = {}
        for name in group:
            layer = layers.get(name)
            if layer is None or layer.input_quantizer is None:
                continue
            leader = first.setdefault(layer.input_quantizer.spec, layer)
            layer.input_quantizer = leader.input_quantizer


def _merged(groups: Iterable[list[str]]) -> list[list[str]]:
    """Groups joined where they have a name in common; those of one name are left out."""
    merged: list[list[str]] = []
    for group in groups:
        joined = list(dict.fromkeys(group))
        apart = []
        for other in merged:
            if set(other) & set(joined):
                joined = list(dict.fromkeys([*other, *joined]))
            else:
                apart.append(other)
        merged = [*apart, joined]
    return [group for group in merged if len(group) > 1]
