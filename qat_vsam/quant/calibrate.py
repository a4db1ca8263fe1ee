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
from qat_vsam.quant.layers import QuantLayer, input_quantizers, quant_layers
from qat_vsam.quant.modes import evaluating, inputs_of, quantizers_off
from qat_vsam.quant.observers import (
    CALIBRATION_METHODS,
    TORCHAO_METHODS,
    CalibrationMethod,
    ObservedStatistics,
    ObserverFactory,
    check_factory,
    check_observed,
    torchao_factories,
)
from qat_vsam.quant.quantizers import Quantizer
from qat_vsam.quant.sharing import layers_that_read_the_same_tensor, share_input_quantizers
from qat_vsam.quant.statistics import StepSizeMethod, TensorStatistics
from qat_vsam.quant.trace import trace


@torch.no_grad()
def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    max_batches: int | None = None,
    method: CalibrationMethod = "mse",
    observer: ObserverFactory | None = None,
    weight_observer: ObserverFactory | None = None,
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
            "torchao-minmax" and "torchao-mse" are torchao's observers for inputs and weights: the range of all values,
            and the one of least squared error over a sample of them.
        observer: in place of `method` for the inputs: a function of (q_min, q_max) that makes an observer of torchao,
            or what works like one. It sees each batch, the step size is its scale, and the zero point must be 0, but
            for "lsq_plus". torchao's own MSE observer keeps what the last batch says. See `ObservedStatistics`.
        weight_observer: the same for the weights, which it sees as one row for each scale: use `PerAxis(0)`.

    Raises:
        InputError: no batch, NaN or infinite values, layers that the data never reaches, a float model, an observer
            whose scale or zero point means nothing for the quantizer.
        ConfigError: an unknown method, or a quantizer whose step size an observer cannot choose: weights measured anew
            at each use ("minmax", "dorefa"), balanced and 1-bit signed grids.
        MissingDependencyError: torchao is asked for and not installed.

    Example:
        >>> import torch
        >>> from qat_vsam.quant import QuantSpec, calibrate, prepare, quant_layers
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> _ = prepare(model, QuantSpec.preset("w4a4"))
        >>> calibrate(model, [torch.randn(16, 4), torch.randn(16, 4)])
        >>> [(name, layer.input_quantizer.signed) for name, layer in quant_layers(model)]
        [('0', True), ('2', False)]

        By an observer of torchao, with the mapping that leaves the zero point at 0 for either sign:

        >>> from torchao.quantization import MappingType, PerTensor
        >>> from torchao.quantization.observer import AffineQuantizedMinMaxObserver
        >>> def minmax(q_min, q_max):
        ...     mapping = MappingType.SYMMETRIC_NO_CLIPPING_ERR if q_min < 0 else MappingType.ASYMMETRIC
        ...     return AffineQuantizedMinMaxObserver(mapping, torch.int32, PerTensor(), q_min, q_max)
        >>> calibrate(model, [torch.tensor([[-12.8, 0.0, 1.0, 3.5]])], observer=minmax)
        >>> round(model[0].input_quantizer.step().item(), 6)  # 12.8 / 128
        0.1
    """
    if method not in CALIBRATION_METHODS:
        advice = did_you_mean(str(method), CALIBRATION_METHODS)
        raise ConfigError(explain("method", method, "one of " + ", ".join(CALIBRATION_METHODS), advice))
    layers = list(quant_layers(model))
    if not layers:
        raise InputError(explain("model", "no quantized layer", "a prepared model", "call prepare(model, spec)"))
    input_names = {**border_quantizers(model), **input_quantizers(model)}
    if method in TORCHAO_METHODS or observer is not None:
        for quantizer, name in input_names.items():
            check_observed(f"{name}.input", quantizer.spec, "activation", method if observer is None else "")
    if method in TORCHAO_METHODS or weight_observer is not None:
        for name, layer in layers:
            check_observed(f"{name}.weight", layer.weight_quantizer.spec, "weight")
    observer, weight_observer = _factories(method, observer, weight_observer)
    inputs = inputs_of(batches, model, max_batches)
    first = next(inputs, None)
    if first is None:
        raise InputError(explain("batches", "no batch", "at least one", "give calibration data"))
    with evaluating(model), quantizers_off(model):
        share_input_quantizers(model, layers_that_read_the_same_tensor(trace(model, first[:2])))
        names = {**border_quantizers(model), **input_quantizers(model)}
        seen = _observe(model, itertools.chain([first], inputs), names, observer)
        unreached = [quantizer for quantizer, statistics in seen.items() if not statistics.count]
        if unreached:
            for module in model.modules():
                module.training = not (is_norm(module) or isinstance(module, nn.modules.dropout._DropoutNd))
            seen |= _observe(model, [first], {quantizer: names[quantizer] for quantizer in unreached}, observer)
        _check(seen, names)
    observed = [statistics for statistics in seen.values() if isinstance(statistics, ObservedStatistics)]
    if weight_observer is not None:
        observed += [_observed_weight(name, layer, weight_observer) for name, layer in layers]
    # all of them first: one that is refused leaves the model as it was
    grids = {statistics.quantizer: statistics.grid() for statistics in observed}
    own: StepSizeMethod = "lsq" if method == "lsq" else "mse"
    for quantizer, statistics in seen.items():
        if quantizer not in grids:
            quantizer.initialise(statistics, own)
    for _, layer in layers:
        if layer.weight_quantizer not in grids:
            layer.initialise_weight_quantizer(own)
    for quantizer, grid in grids.items():
        quantizer.set_step(grid.step, grid.zero_point, grid.signed)


def _factories(
    method: CalibrationMethod, observer: ObserverFactory | None, weight_observer: ObserverFactory | None
) -> tuple[ObserverFactory | None, ObserverFactory | None]:
    check_factory("observer", observer)
    check_factory("weight_observer", weight_observer)
    if method not in TORCHAO_METHODS:
        return observer, weight_observer
    for_inputs, for_weights = torchao_factories(method)
    return observer or for_inputs, weight_observer or for_weights


def _observed_weight(name: str, layer: QuantLayer, factory: ObserverFactory) -> ObservedStatistics:
    quantizer = layer.weight_quantizer
    statistics = ObservedStatistics(f"{name}.weight", quantizer, factory)
    statistics.update(quantizer.sharing(layer.rows(layer.float_weight())))
    return statistics


def _observe(
    model: nn.Module,
    inputs: Iterable[Tensor],
    names: Mapping[Quantizer, str],
    observer: ObserverFactory | None,
) -> dict[Quantizer, TensorStatistics]:
    seen: dict[Quantizer, TensorStatistics] = {}
    for quantizer, name in names.items():
        if observer is None:
            seen[quantizer] = TensorStatistics()
        else:
            seen[quantizer] = ObservedStatistics(f"{name}.input", quantizer, observer)

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
