"""See the codes that enter each layer, of a model and of its artifact.

The artifact's layers are given the codes of the model, not those of the artifact's own layers before them:
rounding is discontinuous, so that one value on the edge between two codes would grow into many differences
further down. A difference then stays in the layer that makes it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from qat_vsam.export.integer_layers import IntegerLayer, IntegerTensor
from qat_vsam.export.onnx_graph import layer_inputs, tensor_codes
from qat_vsam.export.runtime import OnnxRuntime
from qat_vsam.quant import Quantizer, QuantLayer, quant_layers
from qat_vsam.quant.borders import Border, borders

LayerInputs = dict[str, list[Tensor]]
"""Layer, or quantizer between layers -> the codes that entered it, one tensor for each call.

Floats, where only weights are quantized."""

Probe = Callable[[Tensor, LayerInputs], LayerInputs]
"""(inputs, what entered the layers of the model) -> what enters the layers of the artifact."""


def answer(model: nn.Module, x: Tensor) -> tuple[Tensor, LayerInputs]:
    """Logits of a fake-quantized model, and what enters its layers."""
    seen: LayerInputs = {}

    def note(name: str, layer: QuantLayer) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        quantizer = layer.input_quantizer
        read = quantizer.codes if quantizer is not None and quantizer.enabled else torch.Tensor.detach
        return lambda _, arguments: seen.setdefault(name, []).append(read(arguments[0]))

    with ExitStack() as hooks, torch.no_grad():
        for name, layer in quant_layers(model):
            if layer.weight_quantizer.enabled:
                hooks.callback(layer.register_forward_pre_hook(note(name, layer)).remove)
        for border, quantizer in borders(model):
            if isinstance(quantizer, Quantizer) and quantizer.enabled:
                module = model.get_submodule(border.module)
                hooks.callback(_watch(module, border, _noting(seen, border.name, quantizer)).remove)
        logits: Tensor = model(x)
    return logits, seen


def _watch(module: nn.Module, border: Border, look: Callable[[Tensor], Tensor]) -> RemovableHandle:
    """Let a function see, and replace, what the quantizer at a border has handed on."""
    if border.side == "before":
        return module.register_forward_pre_hook(lambda _, arguments: (look(arguments[0]), *arguments[1:]))
    return module.register_forward_hook(lambda _, arguments, y: look(y))


def _noting(seen: LayerInputs, name: str, quantizer: Quantizer) -> Callable[[Tensor], Tensor]:
    def look(x_hat: Tensor) -> Tensor:
        seen.setdefault(name, []).append(quantizer.codes(x_hat))
        return x_hat

    return look


def _exchanging(seen: LayerInputs, name: str, tensor: IntegerTensor, given: LayerInputs) -> Callable[[Tensor], Tensor]:
    def look(x_hat: Tensor) -> Tensor:
        calls = seen.setdefault(name, [])
        calls.append(tensor.codes(x_hat))
        return tensor.values(given[name][len(calls) - 1]).to(x_hat.dtype)

    return look


class IntegerProbe:
    """A `Probe` of an integer model, by hooks."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __call__(self, x: Tensor, given: LayerInputs) -> LayerInputs:
        seen: LayerInputs = {}

        def exchange(name: str) -> Callable[[IntegerLayer, tuple[Any, ...]], tuple[Any, ...]]:
            def hook(layer: IntegerLayer, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
                calls = seen.setdefault(name, [])
                calls.append(layer.activation_codes(arguments[0]))
                return (layer.activation_values(given[name][len(calls) - 1], like=arguments[0]),)

            return hook

        with ExitStack() as hooks, torch.no_grad():
            for name, layer in self._model.named_modules():
                if isinstance(layer, IntegerLayer):
                    hooks.callback(layer.register_forward_pre_hook(exchange(name)).remove)
            for border, tensor in borders(self._model):
                if isinstance(tensor, IntegerTensor):
                    module = self._model.get_submodule(border.module)
                    hooks.callback(_watch(module, border, _exchanging(seen, border.name, tensor, given)).remove)
            self._model(x)
        return seen


class OnnxProbe:
    """A `Probe` of an ONNX graph: a copy whose codes come from outside, while those it makes go outside."""

    def __init__(self, data: bytes) -> None:
        model = ir.from_proto(onnx.load_model_from_string(data))
        graph = model.graph
        self._input = str(graph.inputs[0].name)
        self._layers = layer_inputs(graph)
        self._layers |= {tensor: [name] for tensor, name in tensor_codes(graph).items()}
        self._given: dict[str, str] = {}
        for name in {name for names in self._layers.values() for name in names} - {self._input}:
            value = next(v for node in graph for v in node.outputs if v.name == name)
            graph.outputs.append(value)
            if value.dtype in (ir.DataType.INT8, ir.DataType.UINT8):
                outside = ir.Value(name=f"given {name}", shape=value.shape, type=value.type)
                graph.inputs.append(outside)
                self._given[name] = str(outside.name)
                for consumer, position in list(value.uses()):
                    if consumer.op_type == "DequantizeLinear":
                        consumer.replace_input_with(position, outside)
        self._runtime = OnnxRuntime(ir.to_proto(model).SerializeToString(), None, ())

    def __call__(self, x: Tensor, given: LayerInputs) -> LayerInputs:
        feeds = {self._input: x}
        for layer, names in self._layers.items():
            for name, codes in zip(names, given[layer], strict=True):
                if name in self._given:
                    feeds[self._given[name]] = codes
        seen = {**self._runtime.run(feeds), self._input: x}
        return {layer: [seen[name] for name in names] for layer, names in self._layers.items()}
