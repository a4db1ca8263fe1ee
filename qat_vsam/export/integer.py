"""The integer model: a fake-quantized one, with layers that multiply integer codes in place of its own."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from qat_vsam.errors import InputError, explain
from qat_vsam.export.grid import Grid
from qat_vsam.export.integer_layers import IntegerTensor, integer_layer
from qat_vsam.quant import Quantizer, QuantLayer, quant_layers
from qat_vsam.quant.borders import border_quantizers, borders, put_at
from qat_vsam.quant.replace import replace_modules


def integer_model(model: nn.Module) -> nn.Module:
    """A copy of a fake-quantized model whose quantized layers compute on integer codes.

    Quantizers between the layers become an `IntegerTensor` each. Everything else (batch norms, additions, pooling,
    layers kept in float) stays as it is. The copy is in
    evaluation mode and has no gradient; the model itself is not touched.

    Args:
        model: prepared and calibrated; a float model gives a plain copy.

    Raises:
        InputError: a layer cannot be written as integers: quantizers partly off, a pending `weight_offset`.

    Example:
        >>> import torch
        >>> import qat_vsam as qv
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> x = torch.randn(16, 4)
        >>> summary = qv.prepare(model, qv.QuantSpec.preset("w4a4"))
        >>> qv.calibrate(model, [x])
        >>> torch.allclose(integer_model(model)(x), model.eval()(x), atol=1e-5)
        True
    """
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    replacements: dict[nn.Module, nn.Module] = {}
    for name, layer in list(quant_layers(copied)):
        replacements[layer] = _from_quantized(name, layer)
    tensors: dict[nn.Module, nn.Module] = {
        quantizer: IntegerTensor(_one_scale(name, quantizer), Grid.of(quantizer))
        for quantizer, name in border_quantizers(copied).items()
        if quantizer.enabled
    }
    places = list(borders(copied))
    integers = replace_modules(copied, replacements)
    for border, quantizer in places:
        put_at(integers.get_submodule(border.module), border, tensors.get(quantizer, nn.Identity()))
    return integers


def _from_quantized(name: str, layer: QuantLayer) -> nn.Module:
    activation = layer.input_quantizer
    if activation is not None and not activation.enabled:
        activation = None
    if layer.weight_offset is not None:
        raise InputError(
            explain(
                f"{name}.weight_offset",
                "a tensor",
                "None",
                "export between optimizer steps, not inside one",
            )
        )
    if not layer.weight_quantizer.enabled:
        if activation is None:
            return layer.to_float()
        raise InputError(
            explain(
                f"{name}.weight_quantizer",
                "switched off beside an active input quantizer",
                "both on or both off",
                "call set_quantizers_enabled(model, True) before the export",
            )
        )
    layer.quantized_weight()  # a min-max scale follows the weight when the quantizer runs
    row_codes, bias = layer.row_codes().detach(), getattr(layer, "bias", None)
    scale = layer.weight_quantizer.scale().detach()
    per_group = layer.weight_quantizer.granularity == "per_group"
    codes = (
        row_codes,
        scale.reshape(len(row_codes), -1) if per_group else scale.reshape(-1).expand(len(row_codes)).clone(),
        Grid.of(layer.weight_quantizer),
        None if bias is None else bias.detach().clone(),
    )
    if activation is None:
        return integer_layer(layer, *codes)
    return integer_layer(layer, *codes, _one_scale(f"{name}.input_quantizer", activation), Grid.of(activation))


def _one_scale(name: str, activation: Quantizer) -> Tensor:
    scale = activation.scale().detach()
    if scale.numel() != 1:
        raise InputError(
            explain(
                name,
                f"{scale.numel()} step sizes",
                "one for the whole tensor, so that the sum of products has one scale",
                'use granularity="per_tensor" for activations',
            )
        )
    return scale.reshape(()).clone()
