"""Size of a model in bytes, and the work of one image in bit operations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qat_vsam.evaluate.accuracy import evaluation_mode
from qat_vsam.quant import Quantizer, QuantLayer, quant_layers
from qat_vsam.quant.borders import border_quantizers

FLOAT_BITS = 32


@dataclass(frozen=True)
class Size:
    """Counts of a model.

    Attributes:
        parameters: numbers that the float network learns; step sizes are not among them.
        float_bytes: the tensors of the float network, batch-norm statistics included, in their own precision.
        packed_bytes: the same with the weights of quantized layers at their bits and one float32 per step
            size; a file has a header on top.
        macs: multiply-accumulate operations of one image in convolutions and linear layers; None without a
            sample.
        bit_operations: sum over these layers of MACs x weight bits x activation bits, where what is not
            quantized has 32 bits; None without a sample.
    """

    parameters: int
    float_bytes: int
    packed_bytes: int
    macs: int | None = None
    bit_operations: int | None = None


def model_size(model: nn.Module, sample: Tensor | None = None) -> Size:
    """Count parameters, bytes and, given a sample, operations.

    packed_bytes = sum over quantized layers of ceil(weights x bits / 8) + 4 per step size, + the bytes of
    every other tensor. A tensor that two layers share counts once.

    Args:
        model: a float or a prepared model.
        sample: images (B, C, H, W) for one forward pass in evaluation mode; the counts are per image.

    Example:
        >>> size = model_size(nn.Conv2d(3, 8, 3, padding=1, bias=False), torch.zeros(1, 3, 4, 4))
        >>> size.parameters, size.float_bytes, size.macs, size.bit_operations == size.macs * 32 * 32
        (216, 864, 3456, True)
    """
    of_quantizers = {
        id(tensor) for module in model.modules() if isinstance(module, Quantizer) for tensor in _tensors(module)
    }
    own = {id(tensor): tensor for tensor in _tensors(model) if id(tensor) not in of_quantizers}
    float_bytes = sum(_bytes(tensor) for tensor in own.values())
    codes = {id(layer.weight): layer for _, layer in quant_layers(model) if layer.weight_quantizer.enabled}
    weights = sum(-(-layer.weight.numel() * layer.weight_quantizer.bits // 8) for layer in codes.values())
    rest = sum(_bytes(tensor) for key, tensor in own.items() if key not in codes)
    scales = {
        quantizer: quantizer.scale().numel() * 4
        for _, layer in quant_layers(model)
        for quantizer in (layer.weight_quantizer, layer.input_quantizer)
        if quantizer is not None and quantizer.enabled
    }
    scales |= {quantizer: 4 for quantizer in border_quantizers(model) if quantizer.enabled}
    macs = bit_operations = None
    if sample is not None:
        macs, bit_operations = _operations(model, sample)
    return Size(
        parameters=sum(tensor.numel() for tensor in own.values() if isinstance(tensor, nn.Parameter)),
        float_bytes=float_bytes,
        packed_bytes=weights + rest + sum(scales.values()),
        macs=macs,
        bit_operations=bit_operations,
    )


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _operations(model: nn.Module, sample: Tensor) -> tuple[int, int]:
    """MACs and bit operations of one image, counted by hooks on one forward pass."""
    counts: list[tuple[int, int]] = []

    def count(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # every weight of a channel meets every element: of the output, or in a transposed convolution of the input
        transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
        macs = (inputs[0] if transposed else output).numel() * layer.weight[0].numel() // len(sample)
        weight_bits = activation_bits = FLOAT_BITS
        if isinstance(layer, QuantLayer):
            weight_bits = _bits(layer.weight_quantizer)
            activation_bits = _bits(layer.input_quantizer)
        counts.append((macs, macs * weight_bits * activation_bits))

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
                stack.callback(module.register_forward_hook(count).remove)
        stack.enter_context(evaluation_mode(model))
        stack.enter_context(torch.no_grad())
        model(sample)
    return sum(macs for macs, _ in counts), sum(operations for _, operations in counts)


def _bits(quantizer: Quantizer | None) -> int:
    return quantizer.bits if quantizer is not None and quantizer.enabled else FLOAT_BITS
