"""From a fake-quantized model to an ONNX graph of integer codes (QuantizeLinear / DequantizeLinear).

    activations    QuantizeLinear -> Clip (on the integers, below 8 bits) -> DequantizeLinear
    weights        int8 codes as initializer -> DequantizeLinear, one scale for each output channel
    batch norm     folded into those scales and the bias, see `fold.py`
    bias           added behind the product of codes, where onnxruntime does not round it

Each quantized layer is written with two operators of our own, which `torch.export` carries through any
functional structure around them (additions, padding, slicing), and which become the nodes above in the end.
Below 8 bits the codes still travel in 8-bit integers: what a runtime gains there is size, not speed.
"""

from __future__ import annotations

import ast
import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any, cast

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes.common import (
    ClearMetadataAndDocStringPass,
    RemoveUnusedNodesPass,
)
from onnxscript import opset18 as op
from torch import Tensor, nn
from torch.onnx import ONNXProgram

from qat_vsam.errors import InputError, explain
from qat_vsam.export.fold import fold_batch_norms, separate_biases, settle_initializers, trace_back
from qat_vsam.export.integer import integer_model
from qat_vsam.export.integer_layers import IntegerLayer, IntegerTensor
from qat_vsam.export.repeats import remove_repeats
from qat_vsam.quant.borders import borders, is_border, put_at
from qat_vsam.quant.functional import dequantize, quantize, sign_codes
from qat_vsam.quant.replace import replace_modules

INPUT, OUTPUT = "input", "logits"
# 18 has every operator used here; runtimes lag behind the newest
OPSET = 18


@torch.library.custom_op("qat_vsam::fake_quantize", mutates_args=())
def _fake_quantize(x: Tensor, scale: Tensor, lowest: int, highest: int, stride: int, zero_point: int) -> Tensor:
    codes = sign_codes(x) if stride == 2 else quantize(x, scale, lowest, highest, zero_point)
    return dequantize(codes, scale, zero_point)


@torch.library.custom_op("qat_vsam::dequantize", mutates_args=())
def _dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    return dequantize(codes, scale)


@_fake_quantize.register_fake
def _(x: Tensor, scale: Tensor, lowest: int, highest: int, stride: int, zero_point: int) -> Tensor:
    return torch.empty_like(x)


@_dequantize.register_fake
def _(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    return torch.empty_like(codes, dtype=scale.dtype)


class _TracedLayer(nn.Module):
    """An `IntegerLayer` written with the two operators; its buffers become the graph's initializers."""

    bias: Tensor | None

    def __init__(self, layer: IntegerLayer) -> None:
        super().__init__()
        for name, buffer in layer.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        self.shape = layer.weight_codes.shape
        # one axis for the scales: those of groups lie along it, too
        per_group = layer.weight_scale.dim() == 2
        self.weight_codes = (
            layer.weight_codes.reshape(layer.weight_scale.numel(), -1) if per_group else layer.weight_codes
        )
        self.weight_scale = layer.weight_scale.reshape(-1)
        # zeros may be left out, but onnxruntime then fails in a Gemm where it shifts the weights to unsigned
        self.register_buffer("weight_zero_point", torch.zeros(len(self.weight_codes), dtype=self.weight_codes.dtype))
        self.operate = layer.operate
        self.grid = layer.activation_grid
        self.has_bias = layer.bias is not None

    @property
    def weight(self) -> Tensor:
        """As `IntegerLayer.weight`."""
        return self.weight_codes

    def forward(self, x: Tensor) -> Tensor:
        if self.grid is not None:
            grid = self.grid
            x = torch.ops.qat_vsam.fake_quantize(
                x, self.activation_scale, grid.lowest, grid.highest, grid.stride, grid.zero_point
            )
        weight = torch.ops.qat_vsam.dequantize(self.weight_codes, self.weight_scale, self.weight_zero_point)
        if weight.shape != self.shape:
            weight = weight.reshape(self.shape)
        return self.operate(x, weight, self.bias if self.has_bias else None)


class _TracedTensor(nn.Module):
    """An `IntegerTensor` written with the first of the two operators."""

    def __init__(self, tensor: IntegerTensor) -> None:
        super().__init__()
        self.register_buffer("tensor_scale", tensor.scale)
        self.grid = tensor.grid

    def forward(self, x: Tensor) -> Any:
        grid, scale = self.grid, self.tensor_scale
        return torch.ops.qat_vsam.fake_quantize(x, scale, grid.lowest, grid.highest, grid.stride, grid.zero_point)


def build_onnx(model: nn.Module, sample: Tensor, biases_apart: bool = True) -> onnx.ModelProto:
    """The ONNX graph of a fake-quantized, weight-only or float model.

    The graph has one input, `input`, and one output, `logits`; the batch axis is free.

    Args:
        model: maps one tensor to one tensor; prepared and calibrated, or float.
        sample: a batch of its input, shape (N, ...); only shape and type count.
        biases_apart: add the biases of quantized layers behind them, see `fold.separate_biases`.

    Raises:
        InputError: the model cannot be traced, or a layer cannot be written as integers.
    """
    traced = integer_model(model).cpu()
    replacements: dict[nn.Module, nn.Module] = {}
    for module in traced.modules():
        if isinstance(module, IntegerLayer):
            replacements[module] = _TracedLayer(module)
    places = list(borders(traced))
    traced = replace_modules(traced, replacements)
    for border, tensor in places:
        if isinstance(tensor, IntegerTensor):
            put_at(traced.get_submodule(border.module), border, _TracedTensor(tensor))
    sample = sample.detach().cpu()
    # a traced batch of one would be taken for a constant
    sample = torch.cat([sample[:1], sample[:1]])
    table: dict[Callable[..., Any], Callable[..., Any]] = {
        torch.ops.qat_vsam.fake_quantize.default: _translate_fake_quantize,
        torch.ops.qat_vsam.dequantize.default: _translate_dequantize,
    }
    try:
        with _silence(), torch.no_grad():
            program = torch.onnx.export(
                traced,
                (sample,),
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                custom_translation_table=table,
            )
    except Exception as error:  # the exporter raises many kinds, all meaning the same to the caller
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            explain(
                "model",
                f"a forward that cannot be traced ({reason})",
                "tensor operations only, one tensor in and one out, any batch size",
                'change its forward, or use format="packed"',
            )
        ) from error
    graph = cast("ONNXProgram", program).model
    _name_tensors(graph.graph)
    fold_batch_norms(graph.graph)
    remove_repeats(graph.graph)
    if biases_apart:
        separate_biases(graph.graph)
    for tidy in (
        RemoveUnusedNodesPass(),
        ClearMetadataAndDocStringPass(),  # stack traces of this machine
    ):
        tidy(graph)
    settle_initializers(graph.graph)
    graph.producer_name = "qat-vsam"
    return ir.to_proto(graph)


def _name_tensors(graph: ir.Graph) -> None:
    """Give what a quantizer between layers was written as that quantizer's name, which the exporter keeps as a note."""
    for node in graph:
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
        names = [scope for scope in scopes if is_border(scope)]
        if node.op_type == "DequantizeLinear" and names:
            node.name = names[-1]


def _translate_fake_quantize(x: Any, scale: Any, lowest: int, highest: int, stride: int, zero_point: int) -> Any:
    kind = ir.DataType.INT8 if lowest < 0 else ir.DataType.UINT8
    code_of_zero = _constant(zero_point, kind)
    if stride == 2:
        wide = ir.DataType.INT32
        positive = op.GreaterOrEqual(x, _constant(0.0, ir.DataType.FLOAT))
        codes = op.Cast(op.Where(positive, _constant(1, wide), _constant(-1, wide)), to=kind.value)
    else:
        codes = op.QuantizeLinear(x, scale, code_of_zero)
        if (lowest, highest) not in ((-128, 127), (0, 255)):
            # behind QuantizeLinear: in front of it, runtimes cannot fuse it with the convolution before
            codes = op.Clip(codes, _constant(lowest, kind), _constant(highest, kind))
    return op.DequantizeLinear(codes, scale, code_of_zero)


def _translate_dequantize(codes: Any, scale: Any, zero_point: Any) -> Any:
    return op.DequantizeLinear(codes, scale, zero_point, axis=0)


def _constant(value: float, kind: ir.DataType) -> Any:
    return op.Constant(value=onnx.helper.make_tensor("constant", kind.value, [], [value]))


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep the exporter's advice to its own developers off the user's terminal."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    sink = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def layer_inputs(graph: ir.Graph) -> dict[str, list[str]]:
    """For each quantized layer, the values that hold its input: the integer codes, or the float tensor.

    A layer that is called several times has several, in the order of the calls.
    """
    found: dict[str, list[str]] = {}
    for node in graph:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            layer = layer_of(_name_behind(node.inputs[1], ("Transpose", "Reshape", "DequantizeLinear")))
            if layer is not None:
                value = _name_behind(node.inputs[0], ("Pad", "DequantizeLinear"))
                found.setdefault(layer, []).append(value)
    return found


def tensor_codes(graph: ir.Graph) -> dict[str, str]:
    """For each quantizer between layers, the value that holds its codes; the node behind it has its name."""
    return {
        str(node.name): str(node.inputs[0].name)
        for node in graph
        if node.op_type == "DequantizeLinear" and node.inputs[0] is not None and is_border(str(node.name))
    }


def weight_codes(graph: ir.Graph) -> dict[str, list[Tensor]]:
    """The integer weights of each quantized layer as they lie in the graph, once for each folded copy."""
    found: dict[str, list[Tensor]] = {}
    for name, value in graph.initializers.items():
        layer = layer_of(name)
        if layer is not None and value.const_value is not None:
            found.setdefault(layer, []).append(torch.from_numpy(value.const_value.numpy().copy()))
    return found


def layer_of(initializer: str) -> str | None:
    """Name of the layer that an initializer holds the weight codes of; None where it holds something else."""
    *path, last = initializer.split("#")[0].split(".")
    return ".".join(path) if last == "weight_codes" else None


def _name_behind(value: ir.Value | None, through: tuple[str, ...]) -> str:
    value = trace_back(value, through)
    return "" if value is None else str(value.name)
