"""brevitas: its layers in the place of our calibrated ones, for its training and its QONNX export.

    prepare(model, spec) -> calibrate(model, batches) -> to_brevitas(model) -> param_groups, an optimizer, training

Bits, signs, granularity, which layers, and which tensors share a quantizer are decided by our own `prepare` and
`calibrate`; each layer then starts with the step sizes and on the grid that ours had. From there on brevitas' layers
compute: its learned scale is a threshold t, with s = t / Qp (unsigned, or `narrow`) or s = t / -Qn, and has no
gradient factor 1 / sqrt(N Qp). Nothing of them collects statistics.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from qat_vsam.errors import ConfigError, InputError, MissingDependencyError, explain
from qat_vsam.quant.borders import borders
from qat_vsam.quant.layers import QuantLayer, quant_layers
from qat_vsam.quant.quantizers import Quantizer
from qat_vsam.quant.replace import replace_modules
from qat_vsam.quant.spec import LayerRule, QuantSpec
from qat_vsam.quant.tensor_spec import TensorSpec


def to_brevitas(model: nn.Module) -> nn.Module:
    """Replace our quantized layers, in place, by brevitas' with the same weights, biases, grids and step sizes.

    All layers are checked before the first is replaced. Make the optimizer afterwards; `param_groups` gives
    brevitas' scales the role step_size.

    Args:
        model: prepared and calibrated.

    Returns:
        The model.

    Raises:
        InputError: no quantized layer, one without step sizes yet; per channel a transposed convolution of several
            groups, or an embedding.
        ConfigError: something that brevitas' layers do not have; see `check_brevitas`.
        MissingDependencyError: brevitas is not installed.

    Example:
        >>> import torch
        >>> from qat_vsam.quant import QuantSpec, calibrate, prepare
        >>> model, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 3)), torch.randn(4, 3, 8, 8)
        >>> _ = prepare(model, QuantSpec.preset("w4a8"))
        >>> calibrate(model, [x])
        >>> expected = model(x)
        >>> type(to_brevitas(model)[2]).__module__, torch.allclose(model(x), expected, atol=1e-5)
        ('brevitas.nn.quant_conv', True)
    """
    layers = list(quant_layers(model))
    if not layers:
        raise InputError(explain("model", "no quantized layer", "a prepared model", "call prepare(model, spec)"))
    for name, layer in layers:
        _check_layer(name, layer)
    for border, _ in borders(model):
        got, do = "a quantizer between layers", "prepare with residual_adds float, or use backend=own"
        raise InputError(explain(border.name, got, "none with brevitas", do))
    inputs: dict[Quantizer, nn.Module] = {}
    return replace_modules(model, {layer: _brevitas_layer(layer, inputs) for _, layer in layers})


def check_brevitas(spec: QuantSpec) -> None:
    """Raise ConfigError where a spec asks for something that brevitas' layers with learned scales do not have.

    They have learned step sizes (method "lsq"), the straight-through gradient, and grids with a zero.

    Example:
        >>> check_brevitas(QuantSpec.preset("w4a4"))
    """
    rules: list[QuantSpec | LayerRule] = [spec, *spec.overrides]
    for rule in rules:
        for key, tensor in (("weight", rule.weight), ("activation", rule.activation)):
            if tensor is not None:
                _check_tensor(key, tensor)
    if spec.residual_adds == "quantized":
        do = "leave it at float, or use backend=own"
        raise ConfigError(explain("residual_adds", "quantized", "float with brevitas", do))
    if spec.first_last_bits == 1:
        raise ConfigError(explain("first_last_bits", 1, "2 to 8 bits with brevitas", "choose 8, or backend=own"))


def is_brevitas(model: nn.Module) -> bool:
    """Whether a model has layers of brevitas; asking imports nothing."""
    return any(type(module).__module__.startswith("brevitas.nn.") for module in model.modules())


def _check_tensor(key: str, spec: TensorSpec) -> None:
    do = "change it, or use backend=own"
    if spec.method != "lsq":
        raise ConfigError(explain(f"{key}.method", spec.method, "lsq with brevitas, a learned scale", do))
    if spec.granularity == "per_group":
        expected = "per_tensor or per_channel with brevitas"
        raise ConfigError(explain(f"{key}.granularity", spec.granularity, expected, do))
    if spec.bits == 1:
        raise ConfigError(explain(f"{key}.bits", 1, "2 to 8 bits with brevitas", do))
    if spec.surrogate != "ste":
        raise ConfigError(explain(f"{key}.surrogate", spec.surrogate, "ste with brevitas", do))
    for option in ("balanced", "power_of_two"):
        if getattr(spec, option):
            raise ConfigError(explain(f"{key}.{option}", True, "false with brevitas", do))


def _check_layer(name: str, layer: QuantLayer) -> None:
    for key, quantizer in (("weight", layer.weight_quantizer), ("input", layer.input_quantizer)):
        if quantizer is None:
            continue
        _check_tensor(f"{name}.{key}", quantizer.spec)
        if not quantizer.initialised or not quantizer.enabled:
            got = "a quantizer that is off" if quantizer.initialised else "no step size"
            do = "call calibrate(model, batches), or set_quantizers_enabled(model, True)"
            raise InputError(explain(f"{name}.{key}", got, "a calibrated model with quantizers on", do))
    per_channel = layer.weight_quantizer.granularity == "per_channel"
    if per_channel and isinstance(layer, nn.Embedding):
        do = "keep the layer in float, or give it granularity per_tensor by an override"
        raise InputError(explain(f"{name}.weight", "a scale for each entry", "one scale a table with brevitas", do))
    groups = layer.groups if isinstance(layer, nn.modules.conv._ConvTransposeNd) else 1
    if per_channel and groups > 1:
        do = "keep the layer in float, or use backend=own"
        raise InputError(explain(name, f"{groups} groups", "one group in a transposed convolution with brevitas", do))


def _brevitas_layer(layer: QuantLayer, inputs: dict[Quantizer, nn.Module]) -> nn.Module:
    try:
        import brevitas.nn as brevitas_nn
    except ImportError as error:
        raise MissingDependencyError(
            explain("brevitas", "no such package", "an installed brevitas", "pip install brevitas")
        ) from error
    options = _options(layer) | {
        "weight_quant": _weight_quant(layer),
        "device": layer.weight.device,
        "dtype": layer.weight.dtype,
    }
    if not isinstance(layer, nn.Embedding):
        options["input_quant"] = None if layer.input_quantizer is None else _input_quant(layer.input_quantizer)
    new: Any = getattr(brevitas_nn, type(layer).__name__)(**options)
    new.weight = layer.weight
    if hasattr(layer, "bias"):
        new.bias = layer.bias
    if layer.input_quantizer is not None:
        new.input_quant = inputs.setdefault(layer.input_quantizer, new.input_quant)
    new.register_load_state_dict_pre_hook(_remember_parameters)
    new.register_load_state_dict_post_hook(_keep_parameters)
    return new.train(layer.training)  # type: ignore[no-any-return]


def _remember_parameters(layer: nn.Module, *_: Any) -> None:
    layer.__dict__["_before_load"] = dict(layer.named_parameters())


@torch.no_grad()
def _keep_parameters(layer: nn.Module, _: Any) -> None:
    """brevitas makes new Parameters on loading; an optimizer that holds the old ones would train nothing."""
    before = layer.__dict__.pop("_before_load")
    for name, loaded in list(layer.named_parameters()):
        kept = before.get(name)
        if kept is not None and kept is not loaded:
            path, _, leaf = name.rpartition(".")
            kept.copy_(loaded)
            layer.get_submodule(path)._parameters[leaf] = kept


def _options(layer: Any) -> dict[str, Any]:
    """The arguments by which a float layer of the same kind is made."""
    if isinstance(layer, nn.Embedding):
        names = ["num_embeddings", "embedding_dim", "padding_idx", "scale_grad_by_freq"]
    elif isinstance(layer, nn.Linear):
        names = ["in_features", "out_features"]
    else:
        names = [
            "in_channels",
            "out_channels",
            "kernel_size",
            "stride",
            "padding",
            "dilation",
            "groups",
            "padding_mode",
        ]
        names += ["output_padding"] if layer.transposed else []
    options = {name: getattr(layer, name) for name in names}
    return options if isinstance(layer, nn.Embedding) else options | {"bias": layer.bias is not None}


def _weight_quant(layer: QuantLayer) -> Any:
    from brevitas.quant.scaled_int import Int8WeightPerChannelFloat, Int8WeightPerTensorFloat

    quantizer = layer.weight_quantizer
    threshold = _threshold(quantizer)
    if quantizer.granularity == "per_tensor":
        return Int8WeightPerTensorFloat.let(**_learned(quantizer, threshold))
    axis = 1 if isinstance(layer, nn.modules.conv._ConvTransposeNd) else 0
    shape = [len(threshold) if position == axis else 1 for position in range(layer.weight.dim())]
    return Int8WeightPerChannelFloat.let(**_learned(quantizer, threshold.view(shape)))


def _input_quant(quantizer: Quantizer) -> Any:
    from brevitas.quant.scaled_int import Int8ActPerTensorFloat, Uint8ActPerTensorFloat

    kind = Int8ActPerTensorFloat if quantizer.signed else Uint8ActPerTensorFloat
    return kind.let(**_learned(quantizer, _threshold(quantizer)))


def _learned(quantizer: Quantizer, threshold: Tensor) -> dict[str, Any]:
    from brevitas.inject.enum import ScalingImplType

    return {
        "bit_width": quantizer.bits,
        "signed": quantizer.signed,
        "narrow_range": quantizer.narrow and quantizer.signed,
        "scaling_impl_type": ScalingImplType.PARAMETER,
        "scaling_init": threshold,
    }


def _threshold(quantizer: Quantizer) -> Tensor:
    return quantizer.step().detach() * max(quantizer.q_max, -quantizer.q_min)
