r"""Along which vector the weights are displaced.

    gradient   d = g                        g the gradient at w
    friendly   d = g - sigma m              m <- lambda m + (1 - lambda) g  afterwards            arXiv 2403.12350
    tensors    d = g / beta on tensors drawn with probability beta, 0 on the others               arXiv 2110.03141
    previous   d = gradient that the step before was made with: no gradient at w is taken         S2-SAM, NeurIPS 2024
    momentum   d = - the momentum of the base optimizer: no gradient at w is taken                arXiv 2401.12033

A direction that remembers something keeps one tensor per parameter in the optimizer's state.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from qat_vsam.errors import ConfigError, explain
from qat_vsam.optim.counter import counter_uniform
from qat_vsam.optim.gradients import Gradients
from qat_vsam.optim.points import Point

State = MutableMapping[Tensor, Any]
KEY = "direction"


def forget(state: State) -> None:
    """Drop what is remembered, such as the zeros that make room for a checkpoint to be loaded into."""
    for per_parameter in state.values():
        per_parameter.pop(KEY, None)


class Direction:
    """d = g, the gradient at w. Base of the others.

    Attributes:
        remembers: "slopes" (the gradients at the points) or "steps" (those that the step is made with) if they
            are remembered for later, else "".
    """

    remembers = ""

    def along(self, points: Sequence[Point], slopes: Gradients, state: State) -> dict[Point, Tensor]:
        """The vector at each point that has one; tensors that must not be overwritten."""
        return {point: slopes[point.tensor] for point in points if point.tensor in slopes}

    def weights(self, points: Sequence[Point], step: int) -> list[float]:
        """A factor for each point, 0 to leave it where it is; the norm is taken over all."""
        return [point.uphill for point in points]

    def next_memory(self, state: State, gradients: Gradients) -> Gradients:
        """What will be remembered, by parameter, given what `remembers` names. Changes nothing yet."""
        return {}

    def keep(self, state: State, memory: Gradients) -> None:
        """Remember it. The tensors belong to the direction from here on."""
        for parameter, kept in memory.items():
            state[parameter][KEY] = kept


class Friendly(Direction):
    """d = g - sigma m, with m the running mean of g before this step; at first d = g, m = g.

    Args:
        sigma: How much of the mean is taken off.
        decay: lambda.

    Raises:
        ConfigError: decay outside [0, 1].

    Reference: arXiv 2403.12350.
    """

    remembers = "slopes"

    def __init__(self, sigma: float = 1.0, decay: float = 0.9) -> None:
        if not 0 <= decay <= 1:
            raise ConfigError(explain("decay", decay, "a number in [0, 1]", "use 0.9"))
        self.sigma = sigma
        self.decay = decay

    def along(self, points: Sequence[Point], slopes: Gradients, state: State) -> dict[Point, Tensor]:
        found = super().along(points, slopes, state)
        known = [point for point in found if KEY in state.get(point.parameter, ())]
        if known:
            means = [state[point.parameter][KEY] for point in known]
            reduced = torch._foreach_sub([found[point] for point in known], means, alpha=self.sigma)
            found.update(zip(known, reduced, strict=True))
        return found

    def next_memory(self, state: State, gradients: Gradients) -> Gradients:
        known = [p for p in gradients if KEY in state.get(p, ())]
        fresh = {p: g.clone() for p, g in gradients.items() if KEY not in state.get(p, ())}
        if known:
            means = torch._foreach_mul([state[p][KEY] for p in known], self.decay)
            torch._foreach_add_(means, [gradients[p] for p in known], alpha=1 - self.decay)
            fresh.update(zip(known, means, strict=True))
        return fresh


class RandomTensors(Direction):
    """Each tensor moves with probability beta, by its part of e divided by beta.

    Args:
        beta: The probability.
        seed: Of the counter-based generator.

    Raises:
        ConfigError: beta outside (0, 1].

    Reference: arXiv 2110.03141.
    """

    def __init__(self, beta: float = 0.5, seed: int = 0) -> None:
        if not 0 < beta <= 1:
            raise ConfigError(explain("beta", beta, "a probability in (0, 1]", "use 0.5"))
        self.beta = beta
        self.seed = seed

    def weights(self, points: Sequence[Point], step: int) -> list[float]:
        count = len(points)
        draws = [counter_uniform(self.seed, step * count + i) for i in range(count)]
        return [p.uphill / self.beta if u < self.beta else 0.0 for p, u in zip(points, draws, strict=True)]


class PreviousGradient(Direction):
    """d = the gradient that the previous step was made with."""

    remembers = "steps"

    def along(self, points: Sequence[Point], slopes: Gradients, state: State) -> dict[Point, Tensor]:
        return {point: state[point.parameter][KEY] for point in points if KEY in state.get(point.parameter, ())}

    def next_memory(self, state: State, gradients: Gradients) -> Gradients:
        return gradients

    def keep(self, state: State, memory: Gradients) -> None:
        # A parameter that had no gradient in this step is not to be displaced along an older one.
        for own in state.values():
            own.pop(KEY, None)
        super().keep(state, memory)


class Momentum(Direction):
    """d = - the base optimizer's running mean of gradients (`momentum_buffer` or `exp_avg`)."""

    def along(self, points: Sequence[Point], slopes: Gradients, state: State) -> dict[Point, Tensor]:
        found = {}
        for point in points:
            own = state.get(point.parameter, {})
            momentum = own.get("momentum_buffer", own.get("exp_avg"))
            if momentum is not None:
                found[point] = momentum
        return found

    def weights(self, points: Sequence[Point], step: int) -> list[float]:
        # Of a base optimizer that maximizes it is the mean of negative gradients.
        return [-1.0] * len(points)
