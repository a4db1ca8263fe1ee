"""The first step sizes, and the sign of every activation, from data."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from qat_vsam.errors import ConfigError, InputError, did_you_mean, explain
from qat_vsam.quant.borders import border_quantizers
from qat_vsam.quant.groups import is_norm
from qat_vsam.quant.layers import input_quantizers, quant_layers
from qat_vsam.quant.modes import evaluating, inputs_of, quantizers_off
from qat_vsam.quant.quantizers import Quantizer
from qat_vsam.quant.sharing import layers_that_read_the_same_tensor, share_input_quantizers
from qat_vsam.quant.statistics import STEP_SIZE_METHODS, StepSizeMethod, TensorStatistics
from qat_vsam.quant.trace import trace


@torch.no_grad()
def calibrate(
    model: nn.Module, batches: Iterable[Any], max_batches: int | None = None, method: StepSizeMethod = "mse"
) -> None:
    """Set all step sizes, and the sign of the inputs, from the float model's values on some batches.

    The batches run through the model in evaluation mode with quantizers off. Layers that are not reached so, such
    as the auxiliary heads of GoogLeNet, see the first batch once more in training mode, norms and dropouts still
    in evaluation mode. An input is signed iff a negative value was seen. Layers that read the same tensor come to
    share one input quantizer, so make the optimizer after this call. Nothing is changed where an exception is
    raised, but for that sharing.

    Args:
        model: as `prepare` left it.
        batches: input tensors, or tuples that begin with one.
        max_batches: stop after so many.
        method: "mse" minimises the squared error; "lsq" takes 2 mean|x| / sqrt(Qp). See `initial_step_size`.

    Raises:
        InputError: no batch, NaN or infinite values, layers that the data never reaches, a float model.
        ConfigError: an unknown method.

    Example:
        >>> import torch
        >>> from qat_vsam.quant import QuantSpec, calibrate, prepare, quant_layers
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> _ = prepare(model, QuantSpec.preset("w4a4"))
        >>> calibrate(model, [torch.randn(16, 4), torch.randn(16, 4)])
        >>> [(name, layer.input_quantizer.signed) for name, layer in quant_layers(model)]
        [('0', True), ('2', False)]
    """
    if method not in STEP_SIZE_METHODS:
        advice = did_you_mean(str(method), STEP_SIZE_METHODS)
        raise ConfigError(explain("method", method, "one of " + ", ".join(STEP_SIZE_METHODS), advice))
    layers = list(quant_layers(model))
    if not layers:
        raise InputError(explain("model", "no quantized layer", "a prepared model", "call prepare(model, spec)"))
    inputs = inputs_of(batches, model, max_batches)
    first = next(inputs, None)
    if first is None:
        raise InputError(explain("batches", "no batch", "at least one", "give calibration data"))
    with evaluating(model), quantizers_off(model):
        share_input_quantizers(model, layers_that_read_the_same_tensor(trace(model, first[:2])))
        names = {**border_quantizers(model), **input_quantizers(model)}
        seen = _observe(model, itertools.chain([first], inputs), names)
        unreached = [quantizer for quantizer, statistics in seen.items() if not statistics.count]
        if unreached:
            for module in model.modules():
                module.training = not (is_norm(module) or isinstance(module, nn.modules.dropout._DropoutNd))
            seen |= _observe(model, [first], unreached)
        _check(seen, names)
    for quantizer, statistics in seen.items():
        quantizer.initialise(statistics, method)
    for _, layer in layers:
        layer.initialise_weight_quantizer(method)


def _observe(
    model: nn.Module, inputs: Iterable[Tensor], quantizers: Iterable[Quantizer]
) -> dict[Quantizer, TensorStatistics]:
    seen = {quantizer: TensorStatistics() for quantizer in quantizers}

    def note(statistics: TensorStatistics) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda module, arguments: statistics.update(arguments[0])

    with ExitStack() as stack:
        for quantizer, statistics in seen.items():
            stack.callback(quantizer.register_forward_pre_hook(note(statistics)).remove)
        for x in inputs:
            model(x)
    return seen


def _check(seen: Mapping[Quantizer, TensorStatistics], names: Mapping[Quantizer, str]) -> None:
    unreached = [names[quantizer] for quantizer, statistics in seen.items() if statistics.count == 0]
    if unreached:
        advice = "give data that reaches them, or keep them in float"
        raise InputError(explain("calibration", f"no input at {', '.join(unreached)}", "one at every layer", advice))
    broken = [names[quantizer] for quantizer, statistics in seen.items() if not statistics.finite]
    if broken:
        advice = "check the weights of the float model"
        raise InputError(explain("calibration", f"NaN or infinity at {', '.join(broken)}", "finite inputs", advice))
