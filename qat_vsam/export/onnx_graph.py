"""From a fake-quantized model to an ONNX graph of integer codes (QuantizeLinear / DequantizeLinear).

    activations    QuantizeLinear -> Clip (on the integers, below 8 bits) -> DequantizeLinear
    weights        int8 codes as initializer -> DequantizeLinear, one scale for each output channel
    batch norm     folded into those scales and the bias, see `fold.py`

Each quantized layer is written with two operators of our own, which `torch.export` carries through any
functional structure around them (additions, padding, slicing), and which become the nodes above in the end.
Below 8 bits the codes still travel in 8-bit integers: what a runtime gains there is size, not speed.
"""

from __future__ import annotations

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
from qat_vsam.export.fold import fold_batch_norms, settle_initializers
from qat_vsam.export.integer import Grid, IntegerLayer, integer_model
from qat_vsam.quant.functional import dequantize, quantize, sign_codes
from qat_vsam.quant.replace import replace_modules

INPUT, OUTPUT = "input", "logits"
# 18 has every operator used here; runtimes lag behind the newest
OPSET = 18


@torch.library.custom_op("qat_vsam::fake_quantize", mutates_args=())
def _fake_quantize(x: Tensor, scale: Tensor, lowest: int, highest: int, stride: int) -> Tensor:
    codes = sign_codes(x) if stride == 2 else quantize(x, scale, lowest, highest)
    return dequantize(codes, scale)


@torch.library.custom_op("qat_vsam::dequantize", mutates_args=())
def _dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    return dequantize(codes, scale)


@_fake_quantize.register_fake
def _(x: Tensor, scale: Tensor, lowest: int, highest: int, stride: int) -> Tensor:
    return torch.empty_like(x)


@_dequantize.register_fake
def _(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    return torch.empty_like(codes, dtype=scale.dtype)


class _TracedLayer(nn.Module):
    """An `IntegerLayer` written with the two operators; its buffers become the graph's initializers."""

    bias: Tensor | None

    def __init__(self, layer: IntegerLayer) -> None:
        super().__init__()
        for name, buffer in layer.named_buffers():
            self.register_buffer(name, buffer)
        # zeros may be left out, but onnxruntime then fails in a Gemm where it shifts the weights to unsigned
        self.register_buffer("weight_zero_point", torch.zeros(len(layer.weight_codes), dtype=layer.weight_codes.dtype))
        self.operate = layer.operate
        self.grid = layer.activation_grid
        self.has_bias = layer.bias is not None

    @property
    def weight(self) -> Tensor:
        """As `IntegerLayer.weight`."""
        return self.weight_codes

    def forward(self, x: Tensor) -> Tensor:
        if self.grid is not None:
            x = torch.ops.qat_vsam.fake_quantize(
                x, self.activation_scale, self.grid.lowest, self.grid.highest, self.grid.stride
            )
        weight = torch.ops.qat_vsam.dequantize(self.weight_codes, self.weight_scale, self.weight_zero_point)
        return self.operate(x, weight, self.bias if self.has_bias else None)


def build_onnx(model: nn.Module, sample: Tensor) -> onnx.ModelProto:
    """The ONNX graph of a fake-quantized, weight-only or float model.

    The graph has one input, `input`, and one output, `logits`; the batch axis is free.

    Args:
        model: maps one tensor to one tensor; prepared and calibrated, or float.
        sample: a batch of its input, shape (N, ...); only shape and type count.

    Raises:
        InputError: the model cannot be traced, or a layer cannot be written as integers.
    """
    traced = integer_model(model).cpu()
    layers = [layer for layer in traced.modules() if isinstance(layer, IntegerLayer)]
    replacements: dict[nn.Module, nn.Module] = {layer: _TracedLayer(layer) for layer in layers}
    traced = replace_modules(traced, replacements)
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
    fold_batch_norms(graph.graph)
    for tidy in (
        RemoveUnusedNodesPass(),
        ClearMetadataAndDocStringPass(),  # stack traces of this machine
    ):
        tidy(graph)
    settle_initializers(graph.graph)
    graph.producer_name = "qat-vsam"
    return ir.to_proto(graph)


def _translate_fake_quantize(x: Any, scale: Any, lowest: int, highest: int, stride: int) -> Any:
    grid = Grid(8, lowest, highest, stride)
    kind = ir.DataType.INT8 if lowest < 0 else ir.DataType.UINT8
    zero_point = _constant(0, kind)
    if grid.stride == 2:
        wide = ir.DataType.INT32
        positive = op.GreaterOrEqual(x, _constant(0.0, ir.DataType.FLOAT))
        codes = op.Cast(op.Where(positive, _constant(1, wide), _constant(-1, wide)), to=kind.value)
    else:
        codes = op.QuantizeLinear(x, scale, zero_point)
        if (lowest, highest) not in ((-128, 127), (0, 255)):
            # behind QuantizeLinear: in front of it, runtimes cannot fuse it with the convolution before
            codes = op.Clip(codes, _constant(lowest, kind), _constant(highest, kind))
    return op.DequantizeLinear(codes, scale, zero_point)


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
            layer = layer_of(_trace_back(node.inputs[1], ("Transpose", "DequantizeLinear")))
            if layer is not None:
                value = _trace_back(node.inputs[0], ("Pad", "DequantizeLinear"))
                found.setdefault(layer, []).append(value)
    return found


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


def _trace_back(value: ir.Value | None, through: tuple[str, ...]) -> str:
    while value is not None and (node := value.producer()) is not None and node.op_type in through:
        value = node.inputs[0]
    return "" if value is None else str(value.name)
