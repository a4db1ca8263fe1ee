r"""In which direction, and how far, the weights are displaced before the second gradient.

A perturbation names the points that move, and turns their gradients into displacements:

    euclidean        point: the weight w             e = rho g   / (|g|   + 1e-12),   g   the gradient at w
    post_quantizer   point: an offset behind Q(w)    e = rho g_q / (|g_q| + 1e-12),   g_q the one at Q(w)

with the norm over all points together. Perturbing w in front of a quantizer moves Q(w) by whole steps where
a code flips and not at all elsewhere; behind the quantizer the displacement reaches the loss as it is. The
optimizer, not the perturbation, moves the points and brings them back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qat_vsam.errors import ConfigError, InputError, did_you_mean, explain
from qat_vsam.optim.gradients import Gradients, global_norm

EPSILON = 1e-12
Groups = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Point:
    """A tensor that is displaced by at most `rho` together with all others.

    `temporary` points vanish after the step, so their value need not be brought back.
    """

    tensor: Tensor
    rho: float
    temporary: bool = False


class Perturbation(ABC):
    """Base of all perturbations.

    Args:
        roles: Roles of the parameter groups that are perturbed. A group without the key `role` always is.
    """

    def __init__(self, roles: Sequence[str] = ("weight",)) -> None:
        self.roles = tuple(roles)

    def radii(self, groups: Groups) -> dict[Tensor, float]:
        """The trainable parameters that are perturbed, each with the radius `rho` of its group."""
        return {
            parameter: float(group["rho"])
            for group in groups
            if group.get("role") is None or group["role"] in self.roles
            for parameter in group["params"]
            if parameter.requires_grad
        }

    def check(self, groups: Groups, model: nn.Module | None) -> None:
        """Raise InputError if this perturbation cannot work on these groups and this model."""
        if not self.radii(groups):
            raise InputError(
                explain(
                    "perturbed_roles",
                    self.roles,
                    f"a role among {sorted({str(g.get('role')) for g in groups})}",
                    "name the roles of the parameter groups that shall be perturbed",
                )
            )

    @abstractmethod
    def points(self, groups: Groups, model: nn.Module | None) -> Any:
        """A context manager that yields the list of points, standing where the weights have their value."""

    def displacements(self, points: Sequence[Point], gradients: Gradients) -> dict[Point, Tensor]:
        """e = rho g / (|g| + 1e-12) for the points that have a gradient; |g| over all of them."""
        moving = [point for point in points if point.tensor in gradients]
        slopes = [gradients[point.tensor] for point in moving]
        if not moving:
            return {}
        norm = global_norm(slopes) + EPSILON
        displaced: dict[Point, Tensor] = {}
        for rho, device in sorted({(p.rho, str(p.tensor.device)) for p in moving}):
            same = [i for i, p in enumerate(moving) if p.rho == rho and str(p.tensor.device) == device]
            scale = (rho / norm).to(moving[same[0]].tensor.device)
            steps = torch._foreach_mul([slopes[i] for i in same], scale)
            displaced.update(zip((moving[i] for i in same), steps, strict=True))
        return displaced


class Euclidean(Perturbation):
    r"""e = rho g / (|g| + 1e-12) on the weights themselves.

    Example:
        >>> w = nn.Parameter(torch.zeros(2))
        >>> rule = Euclidean()
        >>> with rule.points([{"params": [w], "rho": 0.5}], None) as points:
        ...     e = rule.displacements(points, {w: torch.tensor([3.0, 4.0])})
        >>> e[points[0]]
        tensor([0.3000, 0.4000])

    Reference: arXiv 2010.01412.
    """

    @contextmanager
    def points(self, groups: Groups, model: nn.Module | None) -> Iterator[list[Point]]:
        yield [Point(parameter, rho) for parameter, rho in self.radii(groups).items()]


class PostQuantizer(Perturbation):
    r"""e = rho g_q / (|g_q| + 1e-12), added after the weight quantizer; the latent weight never moves.

    Works on every layer of `model` that has an attribute `weight_offset` and a perturbed parameter
    `weight`: the offset, a tensor of zeros in the first pass, receives g_q as its gradient and then becomes
    e. Perturbed parameters without such a layer (norms, biases, layers kept in float) stay where they are.
    Needs one tensor of the size of the quantized weights more than `Euclidean` during a step.

    Reference: arXiv 2111.12273.
    """

    def check(self, groups: Groups, model: nn.Module | None) -> None:
        super().check(groups, model)
        if model is None:
            do = "pass model="
        elif not any(True for _ in self._layers(groups, model)):
            do = 'prepare the model for quantization first, or use perturbation="euclidean"'
        else:
            return
        got = "no model" if model is None else "a model without quantized layers among the perturbed parameters"
        raise InputError(explain("perturbation", f'"post_quantizer" with {got}', "layers with a weight_offset", do))

    @contextmanager
    def points(self, groups: Groups, model: nn.Module | None) -> Iterator[list[Point]]:
        placed: list[nn.Module] = []
        try:
            points = []
            for layer, weight, rho in self._layers(groups, model):
                offset = torch.zeros_like(weight, requires_grad=True)
                placed.append(layer)
                layer.weight_offset = offset
                points.append(Point(offset, rho, temporary=True))
            yield points
        finally:
            for layer in placed:
                layer.weight_offset = None  # type: ignore[assignment]

    def _layers(self, groups: Groups, model: nn.Module | None) -> Iterator[tuple[nn.Module, Tensor, float]]:
        radii = self.radii(groups)
        for layer in model.modules() if model is not None else ():
            weight = getattr(layer, "weight", None)
            if hasattr(layer, "weight_offset") and isinstance(weight, Tensor) and weight in radii:
                yield layer, weight, radii[weight]


PERTURBATIONS: dict[str, type[Perturbation]] = {"euclidean": Euclidean, "post_quantizer": PostQuantizer}


def build_perturbation(name: str | Perturbation, roles: Sequence[str]) -> Perturbation:
    """The perturbation of that name on these roles; an object is returned as it is.

    Raises:
        ConfigError: The name is unknown.
    """
    if isinstance(name, Perturbation):
        return name
    if name not in PERTURBATIONS:
        raise ConfigError(
            explain(
                "perturbation",
                repr(name),
                "a perturbation's name",
                did_you_mean(str(name), PERTURBATIONS),
            )
        )
    return PERTURBATIONS[name](roles)
