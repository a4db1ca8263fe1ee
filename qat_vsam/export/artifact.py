"""An artifact as its own runtime sees it, and its comparison with the model it was made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn

from qat_vsam.export.integer import IntegerLayer
from qat_vsam.export.onnx_graph import weight_codes
from qat_vsam.export.packed import load_packed
from qat_vsam.export.probe import LayerInputs, OnnxProbe, integer_probe, quantized_probe
from qat_vsam.export.proof import Comparison
from qat_vsam.export.runtime import OnnxRuntime, PackedRuntime, Runtime
from qat_vsam.quant import quant_layers

_BATCH = 50


@dataclass(frozen=True)
class Artifact:
    """What there is to compare.

    Attributes:
        runtime: computes logits.
        answer: logits of a batch, and the codes that entered each layer.
        weights: weight codes by layer, one tensor for each copy in the file.
    """

    runtime: Runtime
    answer: Callable[[Tensor], tuple[Tensor, LayerInputs]]
    weights: Mapping[str, list[Tensor]]


def load_packed_artifact(path: Path, architecture: nn.Module) -> Artifact:
    """A packed file in PyTorch."""
    model = load_packed(path, architecture)
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, IntegerLayer)]
    weights = {name: [layer.weight_codes] for name, layer in layers}
    return Artifact(PackedRuntime(model), integer_probe(model), weights)


def load_onnx_artifact(path: Path, disabled_optimizers: Sequence[str]) -> Artifact:
    """An ONNX file in onnxruntime. Codes are read from a copy, logits come from the file itself."""
    data = path.read_bytes()
    runtime = OnnxRuntime(data, None, disabled_optimizers, str(path))
    probe = OnnxProbe(data, disabled_optimizers)
    weights = weight_codes(ir.from_proto(onnx.load_model_from_string(data)).graph)
    return Artifact(runtime, lambda x: (runtime(x), probe(x)[1]), weights)


def compare(reference: nn.Module, artifact: Artifact, inputs: Tensor) -> tuple[dict[str, Any], Tensor]:
    """Run both sides.

    Args:
        reference: the fake-quantized or float model, in evaluation mode on the CPU.
        artifact: made from it.
        inputs: shape (N, ...).

    Returns:
        The figures of `Comparison`, and the model's logits for every input.
    """
    layers = {name: layer for name, layer in quant_layers(reference) if layer.weight_quantizer.enabled}
    comparison = Comparison()
    if layers:
        comparison.weight_mismatches = [
            name
            for name, layer in layers.items()
            if not _same_weights(layer.weight_codes(), name, artifact.weights)
        ]
    probe, logits = quantized_probe(reference), []
    for part in inputs.split(_BATCH):
        expected, expected_inputs = probe(part)
        actual, actual_inputs = artifact.answer(part)
        comparison.add_logits(expected, actual)
        logits.append(expected)
        for name, tensors in expected_inputs.items():
            for ours, theirs in zip(tensors, actual_inputs.get(name, []), strict=False):
                comparison.add_layer(name, ours, theirs)
    return comparison.figures(), torch.cat(logits)


def _same_weights(codes: Tensor, name: str, stored: Mapping[str, list[Tensor]]) -> bool:
    # equal initializers of several layers are stored once, under the name of one of them
    candidates = stored.get(name) or [tensor for tensors in stored.values() for tensor in tensors]
    codes = codes.detach().short().flatten(1)
    return any(_equal_up_to_sign(codes, each) for each in candidates if each.numel() == codes.numel())


def _equal_up_to_sign(codes: Tensor, stored: Tensor) -> bool:
    """Equal, negated, or switched off: what batch-norm folding may do to a channel."""
    other = stored.short().reshape(codes.shape)
    equal = (codes == other).all(dim=1) | (codes == -other).all(dim=1) | (other == 0).all(dim=1)
    return bool(equal.all())
