r"""How far a perturbation goes: r in e = r T^2 d / (|T d| + 1e-12).

fixed           rho
loss bound      rho, but to first order the root of the loss rises by no more than kappa
loss increase   what raises the loss by sigma to first order, up to rho
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from qat_vsam.errors import ConfigError, InputError, explain
from qat_vsam.optim.gradients import global_norm
from qat_vsam.optim.points import Point

EPSILON = 1e-12
_TAIL = 0.2
KEY = "rho"
# The key of a group where the base optimizer has one called `rho` already, as Adadelta has.
KEY_BESIDE_ANOTHER = "perturbation_rho"


def radius_of(group: Mapping[str, Any]) -> Any:
    """rho of a parameter group.

    Example:
        >>> radius_of({"rho": 0.9, "perturbation_rho": 0.05})
        0.05
    """
    return group[KEY_BESIDE_ANOTHER] if KEY_BESIDE_ANOTHER in group else group[KEY]


class FixedRadius:
    """r = rho of the parameter's group.

    Attributes:
        reads_loss: Whether r depends on the loss at w.
    """

    reads_loss = False

    def __call__(
        self, rho: float, norm: Tensor, points: Sequence[Point], step: int, loss: Tensor | None = None
    ) -> float | Tensor:
        """r, given rho of the group, |T d|, the points that move, and the loss on the rows that d is of."""
        return rho


class LossBound(FixedRadius):
    r"""r = min(rho, 2 kappa sqrt(L) / |T g|): to first order the root of the loss L rises by no more than kappa.

    In a quadratic bowl with the minimum 0 the root of the loss is linear along g, so there the loss at w + e is
    exactly (sqrt(L) + kappa)^2. A bound on the rise of L itself (`LossIncrease`) grows beyond measure as a net fits its
    data and the slope goes to zero, one in units of L shrinks there to nothing. The gradient of a pretrained net
    that was just quantized is steep and its loss small: a radius that suits a training from random weights would
    lead far off.

    Args:
        largest_rise: kappa, the largest rise of sqrt(L), where L is in nats and has 0 as its lower bound.

    Raises:
        ConfigError: largest_rise is not positive.

    Example:
        >>> LossBound(0.2)(0.5, torch.tensor(4.0), [], 0, torch.tensor(0.25))
        tensor(0.0500)
    """

    reads_loss = True

    def __init__(self, largest_rise: float = 0.35) -> None:
        if not largest_rise > 0:
            raise ConfigError(explain("largest_rise", largest_rise, "a rise of the root of the loss > 0", "use 0.35"))
        self.largest_rise = largest_rise

    def __call__(
        self, rho: float, norm: Tensor, points: Sequence[Point], step: int, loss: Tensor | None = None
    ) -> float | Tensor:
        if loss is None:
            raise InputError(
                explain("perturbation", "LossBound ahead of the loss", "a gradient before e", "use FixedRadius()")
            )
        return torch.clamp(2 * self.largest_rise * loss.abs().to(norm).sqrt() / (norm + EPSILON), max=rho)


class LossIncrease(FixedRadius):
    r"""r = min(sigma / |T g|, kappa |w|, rho): to first order the loss rises by sigma, wherever the gradient is.

    The second bound keeps w + e near w where the gradient vanishes. Like the first, it means the same in any net
    that batch norm makes indifferent to the scale of its weights.

    Args:
        sigma: The rise of the loss.
        largest: kappa, the largest radius in units of |w| over the points that move; None for no such bound.
        total_steps: Length of the run; then sigma falls to zero, by a half cosine, over its last part.
        tail: That part; without `total_steps` there is none to choose.

    Raises:
        ConfigError: sigma or kappa is not positive, or tail outside [0, 1] or without total_steps.

    Reference: arXiv 2605.10183, whose only bound is rho.
    """

    def __init__(
        self,
        sigma: float = 0.1,
        largest: float | None = None,
        total_steps: int | None = None,
        tail: float = _TAIL,
    ) -> None:
        if not sigma > 0:
            raise ConfigError(explain("sigma", sigma, "a rise of the loss > 0", "use 0.1"))
        if largest is not None and not largest > 0:
            raise ConfigError(explain("largest", largest, "a share of the weights' norm > 0", "use 0.1"))
        if not 0 <= tail <= 1:
            raise ConfigError(explain("tail", tail, "a part of the run in [0, 1]", "use 0.2"))
        if total_steps is None and tail != _TAIL:
            raise ConfigError(explain("tail", tail, "the length of the run beside it", "pass total_steps="))
        self.sigma = sigma
        self.largest = largest
        self.total_steps = total_steps
        self.tail = tail

    def __call__(
        self, rho: float, norm: Tensor, points: Sequence[Point], step: int, loss: Tensor | None = None
    ) -> Tensor:
        radius = torch.clamp(self._rise(step) / (norm + EPSILON), max=rho)
        if self.largest is None:
            return radius
        return torch.minimum(radius, self.largest * global_norm([point.parameter for point in points]))

    def _rise(self, step: int) -> float:
        if self.total_steps is None or not self.tail:
            return self.sigma
        begin = (1 - self.tail) * self.total_steps
        done = min(max((step - begin) / (self.tail * self.total_steps), 0.0), 1.0)
        return self.sigma * (1 + math.cos(math.pi * done)) / 2
