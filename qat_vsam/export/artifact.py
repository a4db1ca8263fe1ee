"""An artifact as its own runtime sees it, and its comparison with the model it was made from."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn

from qat_vsam.export.integer_layers import IntegerLayer
from qat_vsam.export.onnx_graph import weight_codes
from qat_vsam.export.packed import load_packed
from qat_vsam.export.probe import IntegerProbe, OnnxProbe, Probe, answer
from qat_vsam.export.proof import Comparison, Noise
from qat_vsam.export.qonnx import QonnxRuntime
from qat_vsam.export.runtime import OnnxRuntime, PackedRuntime
from qat_vsam.export.runtime_base import Runtime
from qat_vsam.quant import quant_layers
from qat_vsam.quant.functional import dequantize

_BATCH = 50


@dataclass(frozen=True)
class Artifact:
    """What there is to compare.

    Attributes:
        runtime: computes logits.
        probe: shows the codes that enter each layer.
        weights: weight codes by layer, one tensor for each copy in the file; None where only logits are compared.
    """

    runtime: Runtime
    probe: Probe
    weights: Mapping[str, list[Tensor]] | None


def load_packed_artifact(path: Path, architecture: nn.Module) -> Artifact:
    """A packed file in PyTorch."""
    model = load_packed(path, architecture)
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, IntegerLayer)]
    weights = {name: [layer.weight_codes] for name, layer in layers}
    return Artifact(PackedRuntime(model), IntegerProbe(model), weights)


def load_onnx_artifact(path: Path) -> Artifact:
    """An ONNX file in onnxruntime. Codes are seen in a copy, logits come from the file itself."""
    data = path.read_bytes()
    runtime = OnnxRuntime(data, None, (), str(path))
    weights = weight_codes(ir.from_proto(onnx.load_model_from_string(data)).graph)
    return Artifact(runtime, OnnxProbe(data), weights)


def load_qonnx_artifact(path: Path) -> Artifact:
    """A QONNX file in qonnx' executor."""
    return Artifact(QonnxRuntime(path.read_bytes(), str(path)), lambda x, given: {}, None)


def compare(reference: nn.Module, artifact: Artifact, inputs: Tensor) -> Comparison:
    """Run both sides.

    Args:
        reference: the fake-quantized or float model, in evaluation mode on the CPU.
        artifact: made from it.
        inputs: shape (N, ...).
    """
    layers = {name: layer for name, layer in quant_layers(reference) if layer.weight_quantizer.enabled}
    comparison = Comparison()
    weights = artifact.weights
    if layers and weights is not None:
        comparison.weight_mismatches = [
            name for name, layer in layers.items() if not _same_weights(layer.row_codes(), name, weights)
        ]
    for part in inputs.split(_BATCH):
        logits, expected = answer(reference, part)
        comparison.add_logits(logits, artifact.runtime(part))
        actual = artifact.probe(part, expected) if layers else {}
        for name in expected.keys() & actual.keys():
            for ours, theirs in zip(expected[name], actual[name], strict=True):
                comparison.add_layer(name, ours, theirs)
    return comparison


def rounding_noise(reference: nn.Module, inputs: Tensor, logits: Tensor) -> Noise | None:
    """How far a model is from itself computed in float64, with the same weight codes.

    None where it cannot be told, because its forward makes float32 tensors itself.
    """
    exact = copy.deepcopy(reference)
    with torch.no_grad():
        for _, layer in quant_layers(exact):
            if layer.weight_quantizer.enabled:
                # the values of the codes as they are, so that none changes with the precision
                quantizer, codes = layer.weight_quantizer, layer.row_codes()
                values = dequantize(quantizer.sharing(codes), quantizer.scale().double()).reshape(codes.shape)
                quantizer.register_forward_hook(_always(values))
                layer.weight_quantizer.enabled = False
        try:
            model = exact.double()
            exact_inputs = inputs.double() if inputs.is_floating_point() else inputs
            answers = torch.cat([model(part) for part in exact_inputs.split(_BATCH)])
        except RuntimeError:
            return None
    comparison = Comparison()
    comparison.add_logits(logits, answers)
    figures = comparison.figures()
    return Noise(figures["mean_logit_difference"], figures["max_logit_difference"])


def _always(value: Tensor) -> Callable[..., Tensor]:
    return lambda *_: value


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
