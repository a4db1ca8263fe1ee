"""What keeps a quantized net steady: batch norm's statistics frozen in training, or measured anew behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from qat_vsam.errors import InputError, explain
from qat_vsam.quant.groups import tracks_statistics
from qat_vsam.quant.modes import evaluating, inputs_of
from qat_vsam.quant.moments import ChannelMoments


def freeze_batch_norm(model: nn.Module, step: int) -> None:
    """Hold the statistics of the batch norms whose time has come: those that `prepare` gave a `freeze_after`.

    A frozen batch norm is in evaluation mode: it normalises by its running mean and variance and leaves them as they
    are, as the exported model will. Scale and shift train on. `model.train()` undoes that, so call this after it, and
    after every step; `fit` does. Nothing is kept but the step that is given, so that a resumed run freezes alike.

    Args:
        model: prepared with `batch_norm="freeze"`; any other is left alone.
        step: steps made so far.

    Example:
        >>> from qat_vsam.quant import QuantSpec, prepare
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        >>> _ = prepare(model, QuantSpec.preset("w4a4", batch_norm="freeze", freeze_after=100))
        >>> for step in (99, 100):
        ...     freeze_batch_norm(model.train(), step)
        ...     print(model[1].training)
        True
        False

    Reference: arXiv 1806.08342, section 3.2.
    """
    for module in model.modules():
        if tracks_statistics(module):
            after = getattr(module, "freeze_after", None)
            if after is not None and step >= after:
                module.eval()


@torch.no_grad()
def reestimate_batch_norm(model: nn.Module, batches: Iterable[Any], max_batches: int | None = None) -> None:
    """Set every batch norm's running mean and variance to those of all given batches together.

    The running averages of training lag behind the weights, which costs low-bit nets accuracy. Here every
    batch norm normalises by its own batch, as in training, while the rest of the model is in evaluation mode;
    the mean and the unbiased variance over all batches, not an average of averages, become the running
    statistics. Momentum, the count of tracked batches, training flags and quantizers stay as they are.

    Args:
        model: quantized or float.
        batches: input tensors, or tuples that begin with one.
        max_batches: stop after so many.

    Raises:
        InputError: no batch, or NaN or infinite values in one; the statistics are then as before.

    Reference: arXiv 2105.07576 (precise batch norm).
    """
    norms: list[Any] = [module for module in model.modules() if tracks_statistics(module)]
    if not norms:
        return
    moments = {norm: ChannelMoments() for norm in norms}
    before = {norm: {name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms}
    try:
        with evaluating(model), ExitStack() as stack:
            for norm in norms:
                norm.train()
                stack.callback(norm.register_forward_pre_hook(_note(moments[norm])).remove)
            for x in inputs_of(batches, model, max_batches):
                model(x)
    finally:
        for norm, buffers in before.items():
            for name, buffer in norm.named_buffers():
                buffer.copy_(buffers[name])
    if not any(seen.count for seen in moments.values()):
        raise InputError(explain("batches", "no batch", "at least one", "give data that reaches the batch norms"))
    for norm, seen in moments.items():
        if seen.count and norm.running_mean is not None and norm.running_var is not None:
            mean, variance = seen.mean_and_variance()
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)


def _note(moments: ChannelMoments) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def note(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        moments.update(arguments[0])

    return note
