"""One quantizer a tensor: layers that read the same tensor, as one forward pass shows, share theirs.

A residual block feeds its input to the first convolution and to the shortcut's. A runtime quantizes that
tensor once, so training must too, or the export computes something else.

Which layers share is found by a forward pass, in `prepare` with a sample or in `calibrate`. A trained state_dict says
it too: each shared quantizer is stored under all its names, with the place of the layer whose quantizer it is, and
loading it into a model that was prepared without a sample joins the same layers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from qat_vsam.quant.layers import QuantLayer, quant_layers
from qat_vsam.quant.trace import Trace, Value, is_layer, root


def layers_that_read_the_same_tensor(seen: Trace) -> list[list[str]]:
    """Groups of at least two layer names whose input held the values of one and the same tensor.

    Values that are only arranged anew, such as by a flattening or a slice, and maxima over windows, are on the grid of
    the tensor that they come from. An in-place operation between two reads makes them two tensors.
    """
    readers: dict[Value, list[str]] = {}
    for operation in seen.operations:
        if operation.kind == "layer" and operation.inputs and is_layer(operation.calls[-1].module):
            readers.setdefault(root(operation.inputs[0]), []).append(operation.owner)
    return _merged(readers.values())


def share_input_quantizers(model: nn.Module, groups: Iterable[list[str]]) -> None:
    """Give the layers of each group the input quantizer of its first layer, where their specs are equal.

    Layers whose input comes quantized have its quantizer already.
    """
    layers = dict(quant_layers(model))
    places = {layer: place for place, layer in enumerate(layers.values(), start=1)}
    for group in groups:
        first: dict[object, QuantLayer] = {}
        for name in group:
            layer = layers.get(name)
            if layer is None or layer.input_quantizer is None or layer.input_is_quantized:
                continue
            leader = first.setdefault(layer.input_quantizer.spec, layer)
            layer.input_quantizer = leader.input_quantizer
            layer.reads_again = layer is not leader
            if layer.reads_again and leader.input_quantizer is not None:
                leader.input_quantizer.shared_with = places[leader]


def share_as_loaded(model: nn.Module, _: Any = None) -> None:
    """Join the layers whose quantizers were one in the model that a state_dict comes from; a hook of loading."""
    names, members = [name for name, _ in quant_layers(model)], dict[int, list[str]]()
    for name, layer in quant_layers(model):
        if layer.input_quantizer is not None and layer.input_quantizer.shared_with:
            members.setdefault(layer.input_quantizer.shared_with, []).append(name)
    for place, group in members.items():
        leader = names[place - 1] if place <= len(names) else ""
        first = [name for name in group if name == leader]
        share_input_quantizers(model, [[*first, *(name for name in group if name != leader)]])


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
