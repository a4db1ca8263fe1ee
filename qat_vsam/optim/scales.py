r"""In which units a perturbation measures the weights: T in  e = rho T^2 g / |T g|.

    unit        T = 1
    adaptive    T = |w| + eta on tensors of two or more axes, 1 on the others      arXiv 2102.11600
    step_size   T = the step size s of the weight's quantizer; only quantized weights move

With T the radius is relative: it needs no change when a layer is rescaled (adaptive), or when the bits and with
them the step sizes change (step_size).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qat_vsam.errors import ConfigError, InputError, explain
from qat_vsam.optim.points import Point, Radii, quantized_layers


class Scale(ABC):
    """Base of the units."""

    @abstractmethod
    def of(self, points: Sequence[Point]) -> list[Tensor] | None:
        """T for each point, broadcastable to it, in tensors that may be overwritten; None for 1."""

    def selects(self, point: Point) -> bool:
        """Whether the point is measured, and so moved, at all."""
        return True

    def check(self, radii: Radii, model: nn.Module | None) -> None:  # noqa: B027 - most fit any model
        """Raise InputError if the model has not what is measured in."""


class Unit(Scale):
    """T = 1."""

    def of(self, points: Sequence[Point]) -> None:
        return None


class Adaptive(Scale):
    """T = |w| + eta on weights, 1 on tensors of at most one axis (biases, scales of norms).

    Args:
        eta: Smallest T of a weight.

    Raises:
        ConfigError: eta is negative.
    """

    def __init__(self, eta: float = 0.01) -> None:
        if not eta >= 0:
            raise ConfigError(explain("eta", eta, "a number >= 0", "use 0.01"))
        self.eta = eta

    def of(self, points: Sequence[Point]) -> list[Tensor]:
        weights = [point.parameter for point in points if point.parameter.dim() > 1]
        magnitudes = list(torch._foreach_abs(weights)) if weights else []
        if magnitudes and self.eta:
            torch._foreach_add_(magnitudes, self.eta)
        measured = iter(magnitudes)
        return [next(measured) if point.parameter.dim() > 1 else point.tensor.new_ones(()) for point in points]


class StepSize(Scale):
    """T = s, the step size of the quantizer before the weight; other parameters stay where they are."""

    def selects(self, point: Point) -> bool:
        return hasattr(point.layer, "weight_step_size")

    def of(self, points: Sequence[Point]) -> list[Tensor]:
        return [point.layer.weight_step_size().detach() for point in points]  # type: ignore[union-attr, operator]

    def check(self, radii: Radii, model: nn.Module | None) -> None:
        if not any(hasattr(layer, "weight_step_size") for layer in quantized_layers(radii, model).values()):
            got = "no model" if model is None else "a model without quantized weights"
            do = "pass model=, prepared for quantization"
            raise InputError(explain("perturbation", f'"step_size" with {got}', "layers with step sizes", do))
