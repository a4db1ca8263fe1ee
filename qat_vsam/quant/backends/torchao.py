"""torchao: our layers by its `quantize_`, and our trained weights as its tensors.

    quantize_(model, QatVsamConfig(spec), filter_fn=...)             float layers -> our fake-quantized ones
    quantize_(model, QatVsamConfig(step="convert"), filter_fn=...)   our layers -> float ones with torchao's tensors

What its `IntxUnpackedToInt8Tensor` holds is int8 codes in the range of a signed b-bit integer and a scale for each
block of the weight. So it carries signed grids with a zero, of linear layers, embeddings and 2d convolutions, and is
refused for unsigned, balanced and 1-bit grids and for other layers. A static step size of an input has no place in it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torchao.core.config import AOBaseConfig
from torchao.quantization import IntxUnpackedToInt8Tensor
from torchao.quantization.transform_module import register_quantize_module_handler

from qat_vsam.errors import ConfigError, InputError, explain
from qat_vsam.quant.borders import borders
from qat_vsam.quant.layers import QuantConv2d, QuantEmbedding, QuantLayer, QuantLinear, quant_layers
from qat_vsam.quant.prepare import QUANTIZED_TWIN, prepare
from qat_vsam.quant.replace import replace_modules
from qat_vsam.quant.spec import LayerRule, QuantSpec
from qat_vsam.quant.tensor_spec import check_choice

Inputs = Literal["as_trained", "float", "int8_per_token"]
INPUTS = ("as_trained", "float", "int8_per_token")
STEPS = ("prepare", "convert")
_CARRIED = (QuantLinear, QuantConv2d, QuantEmbedding)
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass
class QatVsamConfig(AOBaseConfig):  # type: ignore[misc, unused-ignore]
    """The config by which `torchao.quantization.quantize_` prepares and converts with our layers.

    torchao hands the modules that its filter picks over one by one, without their names, so what a spec says of a
    network depends on what is picked:

    - A network, or a part of one that holds layers: it is prepared as by `prepare`, with first and last layer,
      `keep` and `overrides` within it. Pick the whole by `filter_fn=lambda module, name: name == ""`, or a part
      by its name in an `FqnToConfig`.
    - A single layer, as torchao's default filter picks every `nn.Linear`: it gets `spec.weight` and
      `spec.activation`. Which layer is the first or last cannot be seen, so `first_last_bits` does not hold
      there; say it by name in an `FqnToConfig`. `keep` and `overrides` are refused.

    In an `FqnToConfig` the names and patterns must not pick a network and layers within it both. `calibrate` the
    model between prepare and training.

    Args:
        spec: what to quantize and how; for "prepare" only.
        step: "prepare" or "convert".
        inputs: for "convert", see `to_torchao`.

    Raises:
        ConfigError: another step, a spec where none belongs, or none where one does.

    Example:
        >>> import torch
        >>> from torchao.quantization import quantize_
        >>> from qat_vsam.quant import QuantSpec, calibrate
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> quantize_(model, QatVsamConfig(QuantSpec.preset("w4a8")))
        >>> calibrate(model, [torch.randn(16, 8)])  # and train
        >>> quantize_(model, QatVsamConfig(step="convert", inputs="float"))
        >>> type(model[0]).__name__, type(model[0].weight).__name__, model[0].weight.target_dtype
        ('Linear', 'IntxUnpackedToInt8Tensor', torch.int4)
    """

    spec: QuantSpec | None = None
    step: str = "prepare"
    inputs: Inputs = "as_trained"

    def __post_init__(self) -> None:
        check_choice("step", self.step, STEPS)
        check_choice("inputs", self.inputs, INPUTS)
        if (self.step == "prepare") != isinstance(self.spec, QuantSpec):
            got = "no spec" if self.spec is None else type(self.spec).__name__
            expected = "a QuantSpec for step prepare, none for convert"
            raise ConfigError(explain(f"spec at step {self.step}", got, expected, 'see QuantSpec.preset("w4a8")'))


def to_torchao(model: nn.Module, inputs: Inputs = "as_trained") -> nn.Module:
    """Replace our trained layers, in place, by float layers whose weights are torchao's quantized tensors.

    The codes are ours, the scales our step sizes, one for each output channel (block size (1, I, kh, kw) for a
    convolution) or, in linear layers and embeddings, for each group. `layer.weight.dequantize()` is our quantized
    weight, bit for bit. All layers are checked before the first is replaced.

    Args:
        model: prepared; a single quantized layer is returned converted.
        inputs: what becomes of the step sizes of inputs, which torchao's tensors cannot carry. "as_trained" refuses
            layers with an input quantizer that is on; "float" leaves their inputs in float; "int8_per_token" has
            linear layers quantize them dynamically to 8 bits, one asymmetric scale a row, as ExecuTorch does.

    Returns:
        The model.

    Raises:
        InputError: a layer that torchao cannot carry; the message names it.

    Example:
        >>> from qat_vsam.quant import QuantSpec, prepare
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 2))
        >>> _ = prepare(model, QuantSpec.preset("w4"))
        >>> expected = model[0].quantized_weight()
        >>> weight = to_torchao(model)[0].weight
        >>> tuple(weight.block_size), torch.equal(weight.dequantize(), expected)
        ((1, 3, 3, 3), True)
    """
    check_choice("inputs", inputs, INPUTS)
    layers = list(quant_layers(model))
    if not layers:
        raise InputError(explain("model", "no quantized layer", "a prepared model", "call prepare(model, spec)"))
    for name, layer in layers:
        _check(name or type(layer).__name__, layer, inputs)
    for border, _ in borders(model):
        do = "prepare with residual_adds float, or export to onnx"
        raise InputError(explain(border.name, "a quantizer between layers", "none for torchao", do))
    return replace_modules(model, {layer: _converted(layer, inputs) for _, layer in layers})


def _check(name: str, layer: QuantLayer, inputs: Inputs) -> None:
    quantizer = layer.weight_quantizer
    keep_float = "keep the layer in float before training, or export to onnx"
    if not isinstance(layer, _CARRIED):
        expected = "a linear layer, an embedding or a 2d convolution for torchao"
        raise InputError(explain(name, type(layer).__name__, expected, keep_float))
    if not quantizer.signed or quantizer.code_stride != 1:
        expected = "a signed grid with a zero and neighbouring codes, of 2 to 8 bits, for torchao"
        raise InputError(explain(f"{name}.weight", quantizer.spec.scheme, expected, keep_float))
    if quantizer.granularity == "per_group" and layer.weight.dim() > 2:
        expected = "groups along one axis, as in a linear layer, for torchao"
        raise InputError(explain(f"{name}.weight", quantizer.spec.scheme, expected, keep_float))
    if layer.weight.dtype not in _FLOATS:
        expected = "float32, float16 or bfloat16 for torchao"
        raise InputError(explain(f"{name}.weight", layer.weight.dtype, expected, "convert with model.float()"))
    reads = layer.input_quantizer
    if reads is None or not reads.enabled or inputs == "float":
        return
    if inputs == "as_trained":
        do = 'pass inputs="float" or, for linear layers, inputs="int8_per_token"'
        expected = "no static quantizer, which torchao's weights cannot carry"
        raise InputError(explain(f"{name}.input", reads.spec.scheme, expected, do))
    if not isinstance(layer, QuantLinear):
        expected = "a linear layer for int8_per_token"
        raise InputError(explain(f"{name}.input", type(layer).__name__, expected, 'pass inputs="float"'))


@torch.no_grad()
def _converted(layer: QuantLayer, inputs: Inputs) -> nn.Module:
    new = layer.to_float()
    quantizer, codes = layer.weight_quantizer, layer.weight_codes().detach()
    # how many scales lie along each axis
    blocks = [1 if quantizer.granularity == "per_tensor" else codes.shape[0], *[1] * (codes.dim() - 1)]
    if quantizer.granularity == "per_group":
        blocks[1] = codes.shape[1] // quantizer.spec.group_size
    scale = quantizer.scale().detach().clone().reshape(blocks)
    dynamic = inputs == "int8_per_token" and layer.input_quantizer is not None
    tensor: Any = IntxUnpackedToInt8Tensor(
        qdata=codes.contiguous(),
        scale=scale,
        zero_point=torch.zeros_like(scale, dtype=torch.int8),
        target_dtype=getattr(torch, f"int{quantizer.bits}"),
        block_size=tuple(size // count for size, count in zip(codes.shape, blocks, strict=True)),
        dtype=layer.weight.dtype,
        activation_quantization="int8_asym_per_token" if dynamic else None,
    )
    new._parameters["weight"] = nn.Parameter(tensor, requires_grad=False)
    return new


@register_quantize_module_handler(QatVsamConfig)
def _transform(module: nn.Module, config: QatVsamConfig) -> nn.Module:
    if config.step == "convert":
        # as torchao's own QAT: what was not prepared is passed over
        return to_torchao(module, config.inputs) if any(True for _ in quant_layers(module)) else module
    spec = config.spec
    assert spec is not None
    if type(module) not in QUANTIZED_TWIN:
        prepare(module, spec)
        return module
    if spec.keep or spec.overrides:
        got = f"keep={spec.keep!r}, overrides={[rule.layers for rule in spec.overrides]}"
        expected = "none, for torchao hands this layer over without its name"
        do = 'pass filter_fn=lambda module, name: name == "" to prepare the whole model'
        raise ConfigError(explain("spec", got, expected, do))
    root = nn.Sequential(module)
    # alone it would be the first and last layer of its network; a rule by name comes before those bits
    prepare(root, dataclasses.replace(spec, overrides=(LayerRule("0", spec.weight, spec.activation),)))
    return root[0]
