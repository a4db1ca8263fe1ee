"""Batch norm folded into the layer before it, exactly, on the ONNX graph.

    y = gamma (conv(x, s_w w) + b - mean) / sqrt(var + eps) + beta
      = conv(x, |f| s_w sign(f) w) + (b - mean) f + beta,         f = gamma / sqrt(var + eps)

A negative f flips the sign of that channel's codes. The most negative 8-bit code, -128, has no opposite: a
layer that holds it in such a channel keeps its batch norm as a node of its own. On the graph, any model works
whose convolution is followed by nothing but its batch norm, whatever its forward looks like.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Array = NDArray[np.float64]


def fold_batch_norms(graph: ir.Graph) -> None:
    """Fold every BatchNormalization whose input is used by nothing else; in place."""
    for norm in list(graph):
        if norm.op_type == "BatchNormalization":
            _fold(graph, norm)


def settle_initializers(graph: ir.Graph) -> None:
    """Give back the plain name to what replaced an initializer, and to each layer initializers of its own.

    The exporter shares equal ones, but onnxruntime refuses a graph in which two weights share a zero point,
    and makes two weights itself of one that two layers read.
    """
    for node in list(graph):
        if node.op_type == "DequantizeLinear" and node.inputs[0].is_initializer():
            for consumer, position in list(node.outputs[0].uses())[1:]:
                copied = _dequantize_like(graph, node, [value.const_value.numpy() for value in node.inputs])
                consumer.replace_input_with(position, copied)
            for position, value in enumerate(node.inputs):
                if len(value.uses()) > 1:
                    own = _initializer(graph, str(value.name), value.const_value.numpy())
                    node.replace_input_with(position, own)
    for name, value in list(graph.initializers.items()):
        plain = name.split("#")[0]
        if plain not in graph.initializers:
            value.name = plain


def _fold(graph: ir.Graph, norm: ir.Node) -> None:
    between = norm.inputs[0]
    layer = between.producer() if between is not None else None
    constants = [_constant(value) for value in norm.inputs[1:5]]
    if layer is None or not _may_absorb(layer) or any(value is None for value in constants):
        return
    if len(between.uses()) != 1 or between.is_graph_output():
        return
    gamma, beta, mean, variance = (value.astype(np.float64) for value in constants if value is not None)
    epsilon = norm.attributes["epsilon"].as_float() if "epsilon" in norm.attributes else 1e-5
    factor = gamma / np.sqrt(variance + epsilon)
    old_bias = layer.inputs[2] if len(layer.inputs) > 2 else None
    bias = np.zeros_like(mean) if old_bias is None else _constant(old_bias)
    weight = _scaled_weight(graph, layer.inputs[1], factor)
    if bias is None or weight is None:
        return
    folded = ((bias.astype(np.float64) - mean) * factor + beta).astype(np.float32)
    new_bias = _initializer(graph, f"{_stem(layer.inputs[1])}.bias", folded)
    inputs = [layer.inputs[0], weight, new_bias]
    replacement = ir.Node("", layer.op_type, inputs, list(layer.attributes.values()), name=layer.name)
    replacement.outputs[0].name = norm.outputs[0].name
    replacement.outputs[0].type, replacement.outputs[0].shape = norm.outputs[0].type, norm.outputs[0].shape
    graph.insert_after(layer, replacement)
    output = norm.outputs[0]
    output.replace_all_uses_with(replacement.outputs[0], replace_graph_outputs=True)
    graph.remove([norm, layer], safe=True)


def _may_absorb(layer: ir.Node) -> bool:
    if layer.op_type == "Conv":
        return True
    defaults = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1}
    given = {name: attribute.value for name, attribute in layer.attributes.items()}
    return layer.op_type == "Gemm" and given.get("transB") == 1 and {**defaults, **given} == defaults


def _scaled_weight(graph: ir.Graph, weight: ir.Value, factor: Array) -> ir.Value | None:
    """The weight times one factor for each output channel; None where it cannot be written."""
    node = weight.producer()
    if node is None:
        values = _constant(weight)
        if values is None or values.dtype != np.float32:
            return None
        scaled = values.astype(np.float64) * _along_axis_0(factor, values.ndim)
        return _initializer(graph, str(weight.name), scaled.astype(np.float32))
    if node.op_type != "DequantizeLinear":
        return None
    codes, scale = _constant(node.inputs[0]), _constant(node.inputs[1])
    if codes is None or scale is None:
        return None
    sign = _along_axis_0(np.sign(factor).astype(np.int16), codes.ndim)
    flipped = codes.astype(np.int16) * sign
    limits = np.iinfo(codes.dtype)
    if flipped.size and (flipped.min() < limits.min or flipped.max() > limits.max):
        return None
    # a channel switched off by gamma = 0 has zero codes; its scale stays, since runtimes divide by it
    magnitude = np.where(factor == 0, 1.0, np.abs(factor))
    folded = (np.broadcast_to(scale, factor.shape).astype(np.float64) * magnitude).astype(np.float32)
    zero_point = np.zeros(len(codes), codes.dtype)
    return _dequantize_like(graph, node, [flipped.astype(codes.dtype), folded, zero_point])


def _dequantize_like(graph: ir.Graph, node: ir.Node, arrays: list[NDArray[np.generic]]) -> ir.Value:
    """The result of another DequantizeLinear of the same kind: codes, scale and zero point are given."""
    inputs = [_initializer(graph, str(v.name), array) for v, array in zip(node.inputs, arrays, strict=True)]
    new = ir.Node("", "DequantizeLinear", inputs, list(node.attributes.values()))
    old, result = node.outputs[0], new.outputs[0]
    result.name = _free_name(graph, str(old.name))
    result.type, result.shape = old.type, old.shape
    graph.insert_after(node, new)
    return result


def _constant(value: ir.Value | None) -> NDArray[np.generic] | None:
    if value is None or not value.is_initializer() or value.const_value is None:
        return None
    return value.const_value.numpy()


def _initializer(graph: ir.Graph, name: str, array: NDArray[np.generic]) -> ir.Value:
    name = _free_name(graph, name)
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def _free_name(graph: ir.Graph, name: str) -> str:
    """The name, with "#1", "#2", ... behind it where it is taken."""
    stem = name.split("#")[0]
    taken = {*graph.initializers, *(output.name for node in graph for output in node.outputs)}
    number, free = 0, stem
    while free in taken:
        number += 1
        free = f"{stem}#{number}"
    return free


def _stem(weight: ir.Value) -> str:
    node = weight.producer()
    name = str((weight if node is None else node.inputs[0]).name).split("#")[0]
    return name.removesuffix(".weight_codes").removesuffix(".weight")


def _along_axis_0(values: NDArray[np.generic], dimensions: int) -> NDArray[np.generic]:
    return values.reshape(-1, *[1] * (dimensions - 1))
