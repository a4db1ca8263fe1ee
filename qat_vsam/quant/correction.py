"""Undo what rounding did to the mean and the spread of each channel, without training.

For each channel of what a batch norm reads, with mean m and variance v over the data, quantizers off (f) and on (q):

    g         = sqrt((v_f + eps) / (v_q + eps)), within [1/4, 4]
    mean     <- m_q - (m_f - mean) / g
    variance <- (variance + eps) / g^2 - eps

so that the batch norm hands on the mean and the spread that it did in float. For each output channel of a quantized
layer with a bias, m being the mean of its outputs: bias <- bias + m_f - m_q.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from qat_vsam.errors import InputError, explain
from qat_vsam.quant.groups import tracks_statistics
from qat_vsam.quant.layers import QuantLayer, quant_layers
from qat_vsam.quant.modes import evaluating, inputs_of, quantizers_off
from qat_vsam.quant.moments import ChannelMoments

_LARGEST_GAIN = 4.0


@torch.no_grad()
def correct_bias(model: nn.Module, batches: Iterable[Any], max_batches: int | None = None) -> None:
    """Give every channel back the mean and the spread that it had before its net was quantized.

    Rounding the few weights of a channel shifts all that it computes the same way, and layer after layer adds to that;
    in nets with depthwise convolutions the shift outweighs the noise. Each batch runs through the model twice, with
    quantizers off and on, in evaluation mode; in the second run every place is corrected before the next is looked at.
    Batch norms are corrected in their running statistics, mean and variance, layers with a bias in that, the mean
    alone; a layer with neither stays as it is. The data need not be distributed as the training data were: unlike
    `reestimate_batch_norm` this takes over what rounding changed, and not the statistics themselves.

    Args:
        model: as `calibrate` left it. Call this once, before training: the float net that it looks at is the one within
            the model, which a correction and a training change.
        batches: input tensors, or tuples that begin with one; large ones serve better than many.
        max_batches: stop after so many.

    Raises:
        InputError: no batch, or NaN or infinite values in one; a model without quantized layers, or one whose step
            sizes are not set. Nothing is changed then.

    Example:
        >>> from qat_vsam.quant import QuantSpec, calibrate, prepare
        >>> _ = torch.manual_seed(0)
        >>> model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(64, 4)
        >>> expected = model(x).mean(0)
        >>> _ = prepare(model, QuantSpec.preset("w2a8", first_last_bits=2))
        >>> calibrate(model, [x])
        >>> correct_bias(model, [x])
        >>> torch.allclose(model(x).mean(0), expected, atol=1e-6)
        True

    Reference: arXiv 1906.04721, section 4.2 (the mean, from data).
    """
    if not any(True for _ in quant_layers(model)):
        advice = "call prepare(model, spec) and calibrate(model, batches)"
        raise InputError(explain("model", "no quantized layer", "a prepared model", advice))
    places = [_Place(module) for module in model.modules() if tracks_statistics(module) or _has_bias(module)]
    with evaluating(model):
        for x in inputs_of(batches, model, max_batches):
            with ExitStack() as stack, quantizers_off(model):
                for place in places:
                    stack.callback(place.hook(place.look).remove)
                model(x)
            with ExitStack() as stack:
                for place in places:
                    stack.callback(place.hook(place.correct).remove)
                model(x)
    if places and not any(place.calls for place in places):
        raise InputError(explain("batches", "no batch", "at least one", "give data that reaches the layers"))
    for place in places:
        place.settle()


def _has_bias(module: nn.Module) -> bool:
    return isinstance(module, QuantLayer) and isinstance(getattr(module, "bias", None), Tensor)


class _Place:
    """One module: what it sees in float and quantized, pooled over all batches and calls."""

    def __init__(self, module: Any) -> None:
        self.module = module
        # a linear layer's channels come last; a convolution's before its image, which may lack the batch axis
        is_linear = isinstance(module, nn.Linear)
        self.axis = 1 if tracks_statistics(module) else -1 if is_linear else -1 - len(module.kernel_size)
        self.calls = 0
        self.pooled = {"float": ChannelMoments(self.axis), "quantized": ChannelMoments(self.axis)}
        self._pending: list[tuple[Tensor, Tensor]] = []

    def hook(self, function: Callable[[Tensor], Tensor]) -> Any:
        """Let a function see, and replace, a batch norm's input or a layer's output."""
        if tracks_statistics(self.module):
            return self.module.register_forward_pre_hook(lambda _, arguments: (function(arguments[0]),))
        return self.module.register_forward_hook(lambda _, arguments, y: function(y))

    def look(self, x: Tensor) -> Tensor:
        """In float."""
        self._pending.append(self.pooled["float"].update(x))
        return x

    def correct(self, x: Tensor) -> Tensor:
        """Quantized: x with the mean, and for a batch norm the spread, of the same call in float."""
        moments = self.pooled["quantized"].update(x)
        self.calls += 1
        gain, mean, mean_in_float = (self._along(x, value) for value in self._gain(self._pending.pop(0), moments))
        return (x - mean) * gain + mean_in_float

    def settle(self) -> None:
        """Take the correction over into the module."""
        if not self.calls:
            return
        in_float, quantized = (self.pooled[run].mean_and_variance() for run in ("float", "quantized"))
        gain, mean, mean_in_float = self._gain(in_float, quantized)
        if not tracks_statistics(self.module):
            self.module.bias.add_((mean_in_float - mean).to(self.module.bias.dtype))
            return
        epsilon = self.module.eps
        variance = (self.module.running_var.double() + epsilon) / gain.square() - epsilon
        self.module.running_mean.copy_(mean - (mean_in_float - self.module.running_mean.double()) / gain)
        self.module.running_var.copy_(variance.clamp_min(0))

    def _gain(self, in_float: tuple[Tensor, Tensor], quantized: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        (mean_in_float, variance_in_float), (mean, variance) = in_float, quantized
        if not tracks_statistics(self.module):
            return torch.ones_like(mean), mean, mean_in_float
        gain = ((variance_in_float + self.module.eps) / (variance + self.module.eps)).sqrt()
        return gain.clamp(1 / _LARGEST_GAIN, _LARGEST_GAIN), mean, mean_in_float

    def _along(self, x: Tensor, values: Tensor) -> Tensor:
        shape = [1] * x.dim()
        shape[self.axis] = -1
        return values.to(x.dtype).reshape(shape)
