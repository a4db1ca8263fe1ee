"""The moving average of a net's weights over its training steps, which is judged and exported in the net's place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from qat_vsam.errors import ConfigError, explain

Tensors: TypeAlias = tuple[Tensor, ...] | list[Tensor]


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of `model`, to be updated after every step by `update_parameters(model)`.

    With w_t the weights after step t, a_1 = w_1 and

        a_{t+1} = d_t a_t + (1 - d_t) w_{t+1},   d_t = min(decay, (1 + t) / (10 + t)).

    The second term of the minimum makes the memory of a short training a tenth of its steps at most, so that the
    first weights are forgotten; at decay 0.99 it is the smaller one for 890 steps. Batch-norm statistics, step
    sizes and whatever else is a floating-point buffer are averaged like weights; counters and flags are copied.

    Args:
        model: float or prepared; copied, on its device.
        decay: per step, in 0..1, both excluded.

    Raises:
        ConfigError: a decay out of its range.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> average = moving_average(model, decay=0.9)
        >>> for value in (1.0, 2.0):
        ...     _ = nn.init.constant_(model.weight, value)
        ...     average.update_parameters(model)
        >>> round(average.module.weight.item(), 4)  # 2/11 of the first, 9/11 of the second
        1.8182

    Reference: Morales-Brotons et al., "Exponential Moving Average of Weights in Deep Learning", arXiv 2411.18704.
    """
    if not 0 < decay < 1:
        raise ConfigError(explain("ema", decay, "a decay between 0 and 1", "choose for example 0.99"))
    return AveragedModel(model, multi_avg_fn=_update(decay), use_buffers=True)


def _update(decay: float) -> Callable[[Tensors, Tensors, Any], None]:
    @torch.no_grad()
    def update(averaged: Tensors, current: Tensors, updates: Any) -> None:
        if not averaged[0].is_floating_point():
            torch._foreach_copy_(averaged, current)
            return
        # on the device, where `updates` lies: reading it would wait for the step
        weight = 1 - ((1 + updates) / (10 + updates)).clamp(max=decay)
        change = torch._foreach_sub(current, averaged)
        torch._foreach_mul_(change, weight.to(averaged[0].dtype))
        torch._foreach_add_(averaged, change)

    return update
