r"""How far, and in which direction, the weights are displaced before the second gradient.

    e = r T^2 d / (|T d| + 1e-12)          |.| over all points together

A perturbation is put together from four choices, each a small module:

    place       which tensors move                            points
    scale       T, the units that they are measured in        scales
    direction   d, the vector                                 directions
    radius      r: fixed rho, what raises the loss by a fixed amount, or rho where the loss does not forbid it

and every one of them goes with every schedule and method. The usual ones have names: see `PERTURBATIONS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qat_vsam.errors import ConfigError, InputError, did_you_mean, explain
from qat_vsam.optim.directions import Direction, Friendly, State
from qat_vsam.optim.gradients import Gradients, global_norm
from qat_vsam.optim.points import AtNorms, AtWeights, BehindQuantizer, Place, Point
from qat_vsam.optim.scales import Adaptive, Scale, StepSize, Unit

EPSILON = 1e-12
Groups = Sequence[Mapping[str, Any]]


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
    r"""r = min(rho, kappa |L| / |T g|): to first order the loss L rises by no more than kappa times itself.

    L / |g| is how far downhill it is to a loss of zero if the slope stays (Polyak's step), so with kappa = 1 nothing is
    displaced farther up than it is down. The gradient of a pretrained net that was just quantized is steep and its
    loss small: there a radius that suits a training from random weights would lead far off.

    Args:
        kappa: The largest rise in units of the loss. The loss should have 0 as its lower bound.

    Raises:
        ConfigError: kappa is not positive.

    Example:
        >>> LossBound()(0.5, torch.tensor(4.0), [], 0, torch.tensor(0.2))
        tensor(0.0500)
    """

    reads_loss = True

    def __init__(self, kappa: float = 1.0) -> None:
        if not kappa > 0:
            raise ConfigError(explain("kappa", kappa, "a rise > 0 in units of the loss", "use 1.0"))
        self.kappa = kappa

    def __call__(
        self, rho: float, norm: Tensor, points: Sequence[Point], step: int, loss: Tensor | None = None
    ) -> float | Tensor:
        if loss is None:
            raise InputError(
                explain("perturbation", "LossBound ahead of the loss", "a gradient before e", "use FixedRadius()")
            )
        return torch.clamp(self.kappa * loss.abs().to(norm) / (norm + EPSILON), max=rho)


class LossIncrease(FixedRadius):
    r"""r = min(sigma / |T g|, kappa |w|, rho): to first order the loss rises by sigma, wherever the gradient is.

    The second bound keeps w + e near w where the gradient vanishes. Like the first, it means the same in any net
    that batch norm makes indifferent to the scale of its weights.

    Args:
        sigma: The rise of the loss.
        largest: kappa, the largest radius in units of |w| over the points that move; None for no such bound.
        total_steps: Length of the run; then sigma falls to zero, by a half cosine, over its last part.
        tail: That part.

    Raises:
        ConfigError: sigma or kappa is not positive, or tail outside [0, 1].

    Reference: arXiv 2605.10183, whose only bound is rho.
    """

    def __init__(
        self,
        sigma: float = 0.1,
        largest: float | None = None,
        total_steps: int | None = None,
        tail: float = 0.2,
    ) -> None:
        if not sigma > 0:
            raise ConfigError(explain("sigma", sigma, "a rise of the loss > 0", "use 0.1"))
        if largest is not None and not largest > 0:
            raise ConfigError(explain("largest", largest, "a share of the weights' norm > 0", "use 0.1"))
        if not 0 <= tail <= 1:
            raise ConfigError(explain("tail", tail, "a part of the run in [0, 1]", "use 0.2"))
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

    def points(self, groups: Groups, model: nn.Module | None) -> Any:
        """A context manager that yields the list of points, standing where the weights have their value."""
        return self.place.points(self.radii(groups), model)

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
    """The perturbation of that name on these roles (None: its own); an object is returned as it is.

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
    perturbation = PERTURBATIONS[name]()
    if roles is not None:
        perturbation.roles = tuple(roles)
    return perturbation
