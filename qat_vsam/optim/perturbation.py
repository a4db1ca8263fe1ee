r"""How far, and in which direction, the weights are displaced before the second gradient.

    e = r T^2 d / (|T d| + 1e-12)          |.| over all points together

A perturbation is put together from four choices, each a small module:

    place       which tensors move                            points
    scale       T, the units that they are measured in        scales
    direction   d, the vector                                 directions
    radius      r, how far                                    radii

and every one of them goes with every schedule and method. The usual ones have names: see `PERTURBATIONS`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from qat_vsam.errors import ConfigError, InputError, did_you_mean, explain
from qat_vsam.optim.directions import Direction, Friendly, State
from qat_vsam.optim.gradients import Gradients, global_norm
from qat_vsam.optim.points import AtNorms, AtWeights, BehindQuantizer, Place, Point
from qat_vsam.optim.radii import EPSILON, FixedRadius, LossIncrease, radius_of
from qat_vsam.optim.scales import Adaptive, Scale, StepSize, Unit

Groups = Sequence[Mapping[str, Any]]


class Perturbation:
    r"""e = r T^2 d / (|T d| + 1e-12) on the points of a place.

    Args:
        place, scale, direction, radius: The four choices; by default e = rho g / (|g| + 1e-12) on the weights.
        roles: Roles of the parameter groups that are perturbed. A group without the key `role` always is.

    Example:
        >>> w = nn.Parameter(torch.zeros(2))
        >>> rule = Perturbation()
        >>> with rule.points([{"params": [w], "rho": 0.5}], None) as points:
        ...     e = rule.displacements(points, {w: torch.tensor([3.0, 4.0])}, {}, step=0)
        >>> e[points[0]]
        tensor([0.3000, 0.4000])

    Reference: arXiv 2010.01412.
    """

    def __init__(
        self,
        place: Place | None = None,
        scale: Scale | None = None,
        direction: Direction | None = None,
        radius: FixedRadius | None = None,
        roles: Sequence[str] = ("weight",),
    ) -> None:
        self.place = place or AtWeights()
        self.scale = scale or Unit()
        self.direction = direction or Direction()
        self.radius = radius or FixedRadius()
        self.roles = tuple(roles)

    def moves(self, group: Mapping[str, Any]) -> bool:
        """Whether the parameters of a group are perturbed."""
        return group.get("role") is None or group["role"] in self.roles

    def radii(self, groups: Groups) -> dict[Tensor, float]:
        """The trainable parameters that are perturbed, each with the radius `rho` of its group."""
        return {
            parameter: float(radius_of(group))
            for group in groups
            if self.moves(group)
            for parameter in group["params"]
            if parameter.requires_grad
        }

    def check(self, groups: Groups, model: nn.Module | None) -> None:
        """Raise InputError if this perturbation cannot work on these groups and this model."""
        radii = self.radii(groups)
        if not radii:
            raise InputError(
                explain(
                    "perturbed_roles",
                    self.roles,
                    f"a role among {sorted({str(g.get('role')) for g in groups})}",
                    "name the roles of the parameter groups that shall be perturbed",
                )
            )
        self.place.check(radii, model)
        self.scale.check(radii, model)

    @contextmanager
    def points(self, groups: Groups, model: nn.Module | None) -> Iterator[list[Point]]:
        """A context manager that yields the list of points, standing where the weights have their value."""
        climbing = {p for group in groups if group.get("maximize") for p in group["params"]}
        with self.place.points(self.radii(groups), model) as points:
            yield [replace(point, uphill=-1.0) if point.parameter in climbing else point for point in points]

    def displacements(
        self, points: Sequence[Point], slopes: Gradients, state: State, step: int, loss: Tensor | None = None
    ) -> dict[Point, Tensor]:
        """e for the points that move.

        Args:
            points: As yielded by `points`.
            slopes: The gradients at them; a point without one stays.
            state: The optimizer's state, where a direction finds what it remembers.
            step: Number of the step, from 0.
            loss: At w, on the rows that the gradients are of; for a radius that reads it.
        """
        points = [point for point in points if self.scale.selects(point)]
        vectors = self.direction.along(points, slopes, state)
        moving = list(vectors)
        if not moving:
            return {}
        units = self.scale.of(moving)
        scaled = list(vectors.values()) if units is None else torch._foreach_mul(list(vectors.values()), units)
        norm = global_norm(scaled)
        if units is not None:
            torch._foreach_mul_(scaled, units)
        kinds: dict[tuple[float, float, torch.device], list[int]] = {}
        for i, (point, weight) in enumerate(zip(moving, self.direction.weights(moving, step), strict=True)):
            if weight:
                kinds.setdefault((point.rho, weight, point.tensor.device), []).append(i)
        displaced: dict[Point, Tensor] = {}
        for (rho, weight, device), same in kinds.items():
            factor = (weight * self.radius(rho, norm, moving, step, loss) / (norm + EPSILON)).to(device)
            steps = torch._foreach_mul([scaled[i] for i in same], factor)
            displaced.update(zip((moving[i] for i in same), steps, strict=True))
        return displaced


_Builder = Callable[[], Perturbation]
PERTURBATIONS: dict[str, _Builder] = {
    "euclidean": Perturbation,
    "adaptive": lambda: Perturbation(scale=Adaptive()),
    "step_size": lambda: Perturbation(scale=StepSize()),
    "post_quantizer": lambda: Perturbation(place=BehindQuantizer()),
    "friendly": lambda: Perturbation(direction=Friendly()),
    "norm_only": lambda: Perturbation(place=AtNorms(), roles=("norm",)),
    "loss_increase": lambda: Perturbation(radius=LossIncrease()),
}


def build_perturbation(name: str | Perturbation, roles: Sequence[str] | None) -> Perturbation:
    """The perturbation of that name, or the one given, on these roles (None: its own).

    Raises:
        ConfigError: The name is unknown.
    """
    if not isinstance(name, Perturbation) and name not in PERTURBATIONS:
        raise ConfigError(
            explain(
                "perturbation",
                repr(name),
                "a perturbation's name",
                did_you_mean(str(name), PERTURBATIONS),
            )
        )
    perturbation = name if isinstance(name, Perturbation) else PERTURBATIONS[name]()
    if roles is None:
        return perturbation
    on_these = copy.copy(perturbation)
    on_these.roles = tuple(roles)
    return on_these
