"""Batch norm folded into the layer before it, exactly, on the ONNX graph; and biases taken out of products of codes.

    y = gamma (conv(x, s_w w) + b - mean) / sqrt(var + eps) + beta
      = conv(x, |f| s_w sign(f) w) + (b - mean) f + beta,         f = gamma / sqrt(var + eps)

A negative f flips the sign of that channel's codes. The most negative 8-bit code, -128, has no opposite: a
layer that holds it in such a channel keeps its batch norm as a node of its own; a `narrow` grid has no -128.
On the graph, any model works whose convolution is followed by nothing but its batch norm, whatever its forward
looks like.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Array = NDArray[Any]


def fold_batch_norms(graph: ir.Graph) -> None:
    """Fold every BatchNormalization whose input is used by nothing else; in place."""
    for norm in list(graph):
        if norm.op_type == "BatchNormalization":
            _fold(graph, norm)


def separate_biases(graph: ir.Graph) -> None:
    """Write conv(x, w) + b for conv(x, w, b) where x and w are integer codes times scales; in place.

    onnxruntime rounds a bias inside of such a layer to multiples of s_x s_w, which training has not seen; an addition
    behind it is computed as it stands.
    """
    for layer in list(graph):
        if layer.op_type not in ("Conv", "ConvTranspose", "Gemm") or len(layer.inputs) < 3:
            continue
        x, weight, old_bias = layer.inputs
        bias = _constant(old_bias)
        if bias is None or not all(_is_dequantized(value) for value in (x, weight)):
            continue
        if layer.op_type != "Gemm":
            assert weight is not None
            assert weight.shape is not None
            bias = bias.reshape(-1, *[1] * (len(weight.shape) - 2))
        product = ir.Node("", layer.op_type, [x, weight], list(layer.attributes.values()))
        total = ir.Node("", "Add", [product.outputs[0], _initializer(graph, old_bias, bias)])
        old, between = layer.outputs[0], product.outputs[0]
        between.name, between.type, between.shape = _free_name(graph, old), old.type, old.shape
        _replace(graph, [layer], [product, total])


def settle_initializers(graph: ir.Graph) -> None:
    """Give back the plain name to what replaced an initializer, and to each layer initializers of its own.

    The exporter shares equal ones, but onnxruntime refuses a graph in which two weights share a zero point,
    and makes two weights itself of one that two layers read.
    """
    for node in list(graph):
        arrays = [_constant(value) for value in node.inputs]
        if node.op_type != "DequantizeLinear" or any(array is None for array in arrays):
            continue
        for consumer, position in list(node.outputs[0].uses())[1:]:
            consumer.replace_input_with(position, _dequantize_like(graph, node, arrays))
        for position, value in enumerate(node.inputs):
            if value is not None and len(value.uses()) > 1:
                node.replace_input_with(position, _initializer(graph, value, arrays[position]))
    for name, value in list(graph.initializers.items()):
        plain = name.split("#")[0]
        if plain not in graph.initializers:
            value.name = plain


def _fold(graph: ir.Graph, norm: ir.Node) -> None:
    between, *parameters = norm.inputs
    layer = None if between is None else between.producer()
    constants = [_constant(value) for value in parameters]
    if between is None or layer is None or any(value is None for value in constants):
        return
    if not _may_absorb(layer) or len(between.uses()) != 1 or between.is_graph_output():
        return
    gamma, beta, mean, variance = (np.asarray(value, np.float64) for value in constants)
    epsilon = norm.attributes["epsilon"].as_float() if "epsilon" in norm.attributes else 1e-5
    factor = gamma / np.sqrt(variance + epsilon)
    x, weight, *rest = layer.inputs
    old_bias = _constant(rest[0]) if rest and rest[0] is not None else np.zeros_like(mean)
    scaled = None if weight is None else _scaled_weight(graph, weight, factor)
    if old_bias is None or weight is None or scaled is None:
        return
    folded = ((old_bias.astype(np.float64) - mean) * factor + beta).astype(np.float32)
    bias = _initializer(graph, parameters[1] if not rest or rest[0] is None else rest[0], folded)
    replacement = ir.Node("", layer.op_type, [x, scaled, bias], list(layer.attributes.values()))
    _replace(graph, [layer, norm], [replacement])


def _replace(graph: ir.Graph, nodes: list[ir.Node], by: list[ir.Node]) -> None:
    """Put a chain of nodes in the place of another; the last one's result goes by the old name."""
    old, new = nodes[-1].outputs[0], by[-1].outputs[0]
    new.name, new.type, new.shape = old.name, old.type, old.shape
    graph.insert_after(nodes[0], by)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(nodes[::-1], safe=True)


def _is_dequantized(value: ir.Value | None) -> bool:
    """Whether a value is what a DequantizeLinear gives, but for its shape and margins."""
    value = trace_back(value, ("Pad", "Transpose", "Reshape", "Flatten", "MaxPool"))
    node = None if value is None else value.producer()
    return node is not None and node.op_type == "DequantizeLinear"


def trace_back(value: ir.Value | None, through: tuple[str, ...]) -> ir.Value | None:
    """What a value was made from by such operators, along their first inputs."""
    while value is not None and (node := value.producer()) is not None and node.op_type in through:
        value = node.inputs[0]
    return value


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
        return _initializer(graph, weight, (values * _along_axis_0(factor, values)).astype(np.float32))
    codes, scale, *_ = (_constant(value) for value in node.inputs)
    if node.op_type != "DequantizeLinear" or codes is None or scale is None:
        return None
    flipped = codes.astype(np.int16) * _along_axis_0(np.sign(factor), codes).astype(np.int16)
    limits = np.iinfo(codes.dtype)
    if flipped.min() < limits.min or flipped.max() > limits.max:
        return None
    # a channel switched off by gamma = 0 has zero codes; its scale stays, since runtimes divide by it
    magnitude = np.where(factor == 0, 1.0, np.abs(factor))
    scales = (np.broadcast_to(scale, factor.shape) * magnitude).astype(np.float32)
    return _dequantize_like(graph, node, [flipped.astype(codes.dtype), scales, np.zeros_like(codes, shape=len(codes))])


def _dequantize_like(graph: ir.Graph, node: ir.Node, arrays: Sequence[Array | None]) -> ir.Value:
    """The result of another DequantizeLinear of the same kind: codes, scale and zero point are given."""
    inputs = [_initializer(graph, value, array) for value, array in zip(node.inputs, arrays, strict=True)]
    new = ir.Node("", node.op_type, inputs, list(node.attributes.values()))
    old, result = node.outputs[0], new.outputs[0]
    result.name, result.type, result.shape = _free_name(graph, old), old.type, old.shape
    graph.insert_after(node, new)
    return result


def _constant(value: ir.Value | None) -> Array | None:
    if value is None or not value.is_initializer() or value.const_value is None:
        return None
    return value.const_value.numpy()


def _initializer(graph: ir.Graph, like: ir.Value | None, array: Array | None) -> ir.Value:
    """An initializer with this content, named after another one."""
    assert like is not None
    assert array is not None
    name = _free_name(graph, like)
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def _free_name(graph: ir.Graph, like: ir.Value) -> str:
    """A name for what replaces a value: "#1", "#2", ... behind its own."""
    stem = str(like.name).split("#")[0]
    taken = {*graph.initializers, *(output.name for node in graph for output in node.outputs)}
    number = 1
    while f"{stem}#{number}" in taken:
        number += 1
    return f"{stem}#{number}"


def _along_axis_0(values: Array, like: Array) -> Array:
    return values.reshape(-1, *[1] * (like.ndim - 1))
