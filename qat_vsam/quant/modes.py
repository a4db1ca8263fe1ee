"""Modes of a model for the time of a measurement, put back as they were for each module."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from qat_vsam.errors import InputError, explain
from qat_vsam.quant.quantizers import Quantizer


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every module has its own training flag again."""
    flags = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in flags.items():
            module.training = training


@contextmanager
def quantizers_off(model: nn.Module) -> Iterator[None]:
    """The float model; afterwards every quantizer is switched as before."""
    enabled = {module: module.enabled for module in model.modules() if isinstance(module, Quantizer)}
    for quantizer in enabled:
        quantizer.enabled = False
    try:
        yield
    finally:
        for quantizer, flag in enabled.items():
            quantizer.enabled = flag


def inputs_of(batches: Iterable[Any], model: nn.Module, max_batches: int | None = None) -> Iterator[Tensor]:
    """The input of each batch, a tensor or the first of a tuple, on the model's device.

    Raises:
        InputError: a batch of another form, or one with NaN or infinite values.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    for index, batch in enumerate(batches):
        if max_batches is not None and index >= max_batches:
            return
        x = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
        if not isinstance(x, Tensor):
            advice = "give tensors or (inputs, labels) pairs"
            raise InputError(explain(f"batch {index}", type(batch).__name__, "a tensor or a tuple of them", advice))
        if x.is_floating_point() and not bool(torch.isfinite(x).all()):
            raise InputError(explain(f"batch {index}", "NaN or infinite values", "finite inputs", "clean the data"))
        yield x.to(device)
