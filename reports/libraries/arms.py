"""One float network, quantized by three libraries under one policy, and each library's own way to ONNX.

The policy: weights signed, symmetric, one scale per output channel; inputs of convolutions and linear layers one scale
per tensor with zero point 0, unsigned where they are never negative; first and last layer 8 bits; nothing else is
quantized; batch norms stay; scales are learned.
"""

from __future__ import annotations

import copy
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import qat_vsam as qv
from qat_vsam.errors import explain
from qat_vsam.models.cifar_resnet import Subsample
from qat_vsam.quant import quant_layers
from qat_vsam.quant.backends.brevitas import to_brevitas

try:
    import aimet_torch
    import onnxoptimizer  # noqa: F401 - brevitas' exports need it
    from aimet_torch.common.utils import AimetLogger
    from aimet_torch.nn import QuantizationMixin
    from aimet_torch.quantization.base import QuantizerBase
except ImportError as error:
    do = "pip install aimet-torch onnxoptimizer"
    raise SystemExit(explain(str(error.name), "no such package", "an installed one", do)) from None

EXPORT_BATCH = 100
FIRST_LAST_BITS = 8

_LAYER = {"is_input_quantized": "True", "params": {"weight": {"is_quantized": "True", "is_symmetric": "True"}}}
_AIMET_CONFIG = {
    "defaults": {"ops": {}, "params": {"is_symmetric": "True"}, "per_channel_quantization": "True"},
    "params": {},
    "op_type": {"Conv": _LAYER, "Gemm": _LAYER},
    "supergroups": [],
    "model_input": {"is_input_quantized": "True"},
    "model_output": {},
}


def ours(model: nn.Module, bits: str, batches: Sequence[Tensor]) -> nn.Module:
    """LSQ; step sizes that minimise the squared error."""
    qv.prepare(model, qv.QuantSpec.preset(bits), sample=batches[0][:2])
    qv.calibrate(model, batches)
    return model


def ours_corrected(model: nn.Module, bits: str, batches: Sequence[Tensor]) -> nn.Module:
    """The same, with the means and spreads of channels given back."""
    qv.correct_bias(ours(model, bits, batches), batches)
    return model


def brevitas(model: nn.Module, bits: str, batches: Sequence[Tensor]) -> nn.Module:
    """brevitas' layers on the step sizes that our calibration found, as `quant.backend: brevitas` makes them."""
    return to_brevitas(ours(model, bits, batches)).to(memory_format=torch.channels_last)


def aimet(model: nn.Module, bits: str, batches: Sequence[Tensor]) -> nn.Module:
    """AIMET's layers and calibration; zero points held at 0, as the policy wants it."""
    simulated = _simulate(model, bits, batches)
    _hold_zero_points(simulated)
    return simulated


def aimet_asymmetric(model: nn.Module, bits: str, batches: Sequence[Tensor]) -> nn.Module:
    """AIMET as it comes: the least and the largest value of every input are learned, the zero point follows."""
    return _simulate(model, bits, batches)


def aimet_our_steps(model: nn.Module, bits: str, batches: Sequence[Tensor]) -> nn.Module:
    """AIMET's layers on the step sizes that our calibration found; zero points held at 0."""
    calibrated = dict(quant_layers(ours(copy.deepcopy(model), bits, batches)))
    simulated = _simulate(model, bits, batches[:1])
    for name, layer in _aimet_layers(simulated):
        own = calibrated[name]
        for theirs, quantizer in (
            (layer.param_quantizers["weight"], own.weight_quantizer),
            (layer.input_quantizers[0], own.input_quantizer),
        ):
            step = quantizer.step().detach().reshape(theirs.min.shape)
            theirs.set_range(step * quantizer.q_min, step * quantizer.q_max)
    _hold_zero_points(simulated)
    return simulated


Arm = Callable[[nn.Module, str, Sequence[Tensor]], nn.Module]
ARMS: dict[str, Arm] = {
    "ours": ours,
    "ours-corrected": ours_corrected,
    "brevitas": brevitas,
    "aimet": aimet,
    "aimet-asymmetric": aimet_asymmetric,
    "aimet-our-steps": aimet_our_steps,
}


def param_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """`qv.param_groups`, with AIMET's ranges among those that have no weight decay."""
    ranges = {id(p) for module in model.modules() if isinstance(module, QuantizerBase) for p in module.parameters()}
    groups = qv.param_groups(model, weight_decay)
    found = [p for group in groups for p in group["params"] if id(p) in ranges]
    for group in groups:
        group["params"] = [p for p in group["params"] if id(p) not in ranges]
    if found:
        groups.append({"params": found, "role": "step_size", "weight_decay": 0.0})
    return [group for group in groups if group["params"]]


def export(model: nn.Module, path: Path, inputs: Tensor) -> None:
    """Write the ONNX file that the model's own library writes; theirs have a fixed batch of EXPORT_BATCH."""
    sample = inputs[:EXPORT_BATCH].contiguous()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if any(True for _ in quant_layers(model)):
            qv.export(model, path, format="onnx", sample=inputs)
        elif _aimet_layers(model):
            # int4 needs opset 21; everything else is the default
            aimet_torch.onnx.export(model, sample, str(path), opset_version=21)
        else:
            from brevitas.export import export_onnx_qcdq

            # with dynamo the weights' quantizers are not written
            export_onnx_qcdq(copy.deepcopy(model), args=sample, export_path=str(path), dynamo=False)


def _simulate(model: nn.Module, bits: str, batches: Sequence[Tensor]) -> nn.Module:
    AimetLogger.set_level_for_all_areas(logging.ERROR)
    QuantizationMixin.ignore(Subsample)
    weight_bits, input_bits = (int(bits[place]) for place in (1, 3))
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.json"
        config.write_text(json.dumps(_AIMET_CONFIG))
        sim = aimet_torch.QuantizationSimModel(
            model,
            batches[0][:2],
            quant_scheme="tf_enhanced",
            default_param_bw=weight_bits,
            default_output_bw=input_bits,
            config_file=str(config),
        )
    layers = [layer for _, layer in _aimet_layers(sim.model)]
    for layer in (layers[0], layers[-1]):
        layer.param_quantizers["weight"].bitwidth = FIRST_LAST_BITS
        layer.input_quantizers[0].bitwidth = FIRST_LAST_BITS
    images = layers[0].input_quantizers[0]
    images.signed = images.symmetric = True
    sim.compute_encodings(lambda net: [net(x) for x in batches])
    return sim.model


def _aimet_layers(model: nn.Module) -> list[tuple[str, Any]]:
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, QuantizationMixin) and isinstance(module, nn.Conv2d | nn.Linear)
    ]


def _hold_zero_points(model: nn.Module) -> None:
    """Inputs that are never negative: the least value stays 0, so that only the step size is learned."""
    for name, layer in _aimet_layers(model):
        quantizer = layer.input_quantizers[0]
        if quantizer.symmetric:
            continue
        if quantizer.min.item() != 0:
            raise RuntimeError(f"{name}: got a least input of {quantizer.min.item()}; expected 0")
        quantizer.min.requires_grad_(False)
