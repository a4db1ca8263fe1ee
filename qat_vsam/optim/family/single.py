"""Members that take one gradient a step, at weights displaced along what earlier steps left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from qat_vsam.optim.directions import Momentum, PreviousGradient
from qat_vsam.optim.methods import Lookahead
from qat_vsam.optim.perturbation import Perturbation
from qat_vsam.optim.sharpness_aware import SharpnessAware


class MSAM(SharpnessAware):
    r"""Momentum SAM: the gradient is taken against the momentum, at the price of SGD.

        base optimizer steps from w with the gradient at w - rho v / |v|,    v its momentum

    Between steps the weights stand at w, so nothing has to be moved to evaluate or to save.

    Args:
        params, base_optimizer, **options: As for `SAM`; a base optimizer without momentum steps as usual.
        rho: Radius; published 0.3 (its class) to 3 (its recipes).
        perturbed_roles: Roles that are perturbed where groups have roles.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = MSAM(model.parameters(), torch.optim.SGD, model=model, lr=0.1, momentum=0.9)
        >>> x, y = torch.randn(8, 3), torch.randn(8, 1)
        >>> def closure(rows=slice(None)):
        ...     optimizer.zero_grad()
        ...     loss = torch.nn.functional.mse_loss(model(x[rows]), y[rows])
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
        >>> optimizer.gradient_evaluations
        1.0

    Caveats:
        The returned loss is that at the displaced weights, for the batch is never seen at w.

    Reference: arXiv 2401.12033.
    """

    settles: ClassVar[tuple[str, ...]] = ("perturbation", "dropout")

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: type[Optimizer],
        *,
        rho: float = 0.3,
        perturbed_roles: Sequence[str] = ("weight",),
        **options: Any,
    ) -> None:
        perturbation = Perturbation(direction=Momentum(), roles=perturbed_roles)
        super().__init__(params, base_optimizer, perturbation=perturbation, method=Lookahead(), rho=rho, **options)


class S2SAM(SharpnessAware):
    r"""Single-step SAM: ascend along the gradient of the step before.

        g   = gradient at w + rho g' / |g'|,     g' the gradient of the step before (first step: at w)
        base optimizer steps from w with g

    Costs 1 gradient a step; keeps one tensor per parameter between steps, g.

    Args:
        params, base_optimizer, rho, **options: As for `SAM`.
        perturbed_roles: Roles that are perturbed where groups have roles.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = S2SAM(model.parameters(), torch.optim.SGD, model=model, lr=0.1)
        >>> x, y = torch.randn(8, 3), torch.randn(8, 1)
        >>> def closure(rows=slice(None)):
        ...     optimizer.zero_grad()
        ...     loss = torch.nn.functional.mse_loss(model(x[rows]), y[rows])
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
        >>> optimizer.gradient_evaluations
        1.0

    Caveats:
        The returned loss is that at the displaced weights, for the batch is never seen at w.

    Reference: "Single-step SAM", NeurIPS 2024.
    """

    settles: ClassVar[tuple[str, ...]] = ("perturbation", "dropout")

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: type[Optimizer],
        *,
        rho: float = 0.05,
        perturbed_roles: Sequence[str] = ("weight",),
        **options: Any,
    ) -> None:
        perturbation = Perturbation(direction=PreviousGradient(), roles=perturbed_roles)
        super().__init__(params, base_optimizer, perturbation=perturbation, method=Lookahead(), rho=rho, **options)
