"""Run a model and see the codes that enter its layers: in PyTorch by hooks, in ONNX by extra outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn

from qat_vsam.export.integer import IntegerLayer
from qat_vsam.export.onnx_graph import layer_inputs
from qat_vsam.export.runtime import OnnxRuntime
from qat_vsam.quant import QuantConv2d, QuantLinear, quant_layers

LayerInputs = dict[str, list[Tensor]]
Probe = Callable[[Tensor], tuple[Tensor, LayerInputs]]
"""A batch of inputs -> (logits, the codes that entered each layer, one tensor for each call of it)."""


class TorchProbe:
    """A `Probe` of a PyTorch model.

    Args:
        model: in evaluation mode.
        readers: name of a layer -> (the layer, what it makes of its input).
    """

    def __init__(
        self, model: nn.Module, readers: Mapping[str, tuple[nn.Module, Callable[[Tensor], Tensor]]]
    ) -> None:
        self._model = model
        self._readers = readers

    def __call__(self, x: Tensor) -> tuple[Tensor, LayerInputs]:
        seen: LayerInputs = {name: [] for name in self._readers}
        hooks = [
            layer.register_forward_pre_hook(
                lambda _, inputs, name=name, read=read: seen[name].append(read(inputs[0]))
            )
            for name, (layer, read) in self._readers.items()
        ]
        try:
            with torch.no_grad():
                logits: Tensor = self._model(x)
        finally:
            for hook in hooks:
                hook.remove()
        return logits, seen


def quantized_probe(model: nn.Module) -> TorchProbe:
    """A probe of a fake-quantized model: what its input quantizers make of each layer's input."""

    def reader(layer: QuantConv2d | QuantLinear) -> Callable[[Tensor], Tensor]:
        quantizer = layer.input_quantizer
        return (lambda x: x) if quantizer is None or not quantizer.enabled else quantizer.codes

    layers = [(name, layer) for name, layer in quant_layers(model) if layer.weight_quantizer.enabled]
    return TorchProbe(model, {name: (layer, reader(layer)) for name, layer in layers})


def integer_probe(model: nn.Module) -> TorchProbe:
    """A probe of an integer model."""
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, IntegerLayer)]
    return TorchProbe(model, {name: (layer, layer.activation_codes) for name, layer in layers})


class OnnxProbe:
    """A probe of an ONNX graph: runs a copy whose layer inputs are outputs as well."""

    def __init__(self, data: bytes, disabled_optimizers: Sequence[str]) -> None:
        model = ir.from_proto(onnx.load_model_from_string(data))
        self._names = layer_inputs(model.graph)
        outputs = {value.name for value in model.graph.outputs}
        self._inputs = {value.name for value in model.graph.inputs}
        wanted = {name for names in self._names.values() for name in names}
        for node in model.graph:
            for value in node.outputs:
                if value.name in wanted - outputs:
                    model.graph.outputs.append(value)
        self._runtime = OnnxRuntime(ir.to_proto(model).SerializeToString(), None, disabled_optimizers)

    def __call__(self, x: Tensor) -> tuple[Tensor, LayerInputs]:
        arrays = dict(zip(self._runtime.outputs, self._runtime.run(x), strict=True))
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        tensors.update(dict.fromkeys(self._inputs, x))
        return tensors[self._runtime.outputs[0]], {
            layer: [tensors[name] for name in names] for layer, names in self._names.items()
        }
