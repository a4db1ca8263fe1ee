"""Members that take SAM's second gradient at some steps only, and LookSAM's reuse of it in between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from qat_vsam.optim.directions import RandomTensors
from qat_vsam.optim.gradient_schedule import GradientNormSchedule
from qat_vsam.optim.methods import Selected
from qat_vsam.optim.perturbation import Perturbation
from qat_vsam.optim.psf import OrthogonalPSF, floating_point_type
from qat_vsam.optim.sharpness_aware import SharpnessAware
from qat_vsam.optim.step_schedules import Periodic, RandomSteps


class LookSAM(SharpnessAware):
    r"""SAM at every k-th step; the part of its gradient across the plain one is reused in between.

        every k-th step:  with g_s;        h_v = g_s - its part along g, kept
        otherwise:        with g + alpha |g| h_v / |h_v|

    Costs 1 + 1/k gradients a step; keeps one tensor per parameter between steps.

    Args:
        params, base_optimizer, rho, **options: As for `SAM`.
        interval: k.
        alpha: Weight of the reused part.
        psf_dtype: What is kept in; see `VSAM`.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = LookSAM(model.parameters(), torch.optim.SGD, model=model, lr=0.1)
        >>> x, y = torch.randn(8, 3), torch.randn(8, 1)
        >>> def closure(rows=slice(None)):
        ...     optimizer.zero_grad()
        ...     loss = torch.nn.functional.mse_loss(model(x[rows]), y[rows])
        ...     loss.backward()
        ...     return loss
        >>> for _ in range(5):
        ...     loss = optimizer.step(closure)
        >>> optimizer.gradient_evaluations / optimizer.steps
        1.2

    Reference: arXiv 2203.02714.
    """

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: type[Optimizer],
        *,
        rho: float = 0.1,
        interval: int = 5,
        alpha: float = 0.7,
        psf_dtype: torch.dtype | str | None = None,
        **options: Any,
    ) -> None:
        psf = OrthogonalPSF(alpha, floating_point_type(psf_dtype))
        super().__init__(params, base_optimizer, schedule=Periodic(interval), psf=psf, rho=rho, **options)


class RandomSAM(SharpnessAware):
    r"""SAM with probability p at each step, the base optimizer otherwise. Costs 1 + p gradients a step.

    Args:
        params, base_optimizer, rho, **options: As for `SAM`.
        probability: p.
        seed: Of the draws, which are a pure function of it and the step.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = RandomSAM(model.parameters(), torch.optim.SGD, model=model, lr=0.1, probability=1.0)
        >>> x, y = torch.randn(8, 3), torch.randn(8, 1)
        >>> def closure(rows=slice(None)):
        ...     optimizer.zero_grad()
        ...     loss = torch.nn.functional.mse_loss(model(x[rows]), y[rows])
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
        >>> optimizer.gradient_evaluations
        2.0

    Reference: arXiv 2203.09962.
    """

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: type[Optimizer],
        *,
        rho: float = 0.05,
        probability: float = 0.5,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(params, base_optimizer, schedule=RandomSteps(probability, seed=seed), rho=rho, **options)


class AESAM(SharpnessAware):
    r"""SAM at the steps whose gradient is large for its time.

        m, v = running mean and variance of |g|^2
        SAM's step iff |g|^2 >= m + c sqrt(v),   c from +1 to -1 over the run;   the base's otherwise

    About half of the steps pay. Reads a number from the device at each step.

    Args:
        params, base_optimizer, rho, **options: As for `SAM`.
        total_steps: Length of the run.
        decay: Of m and v.
        first, last: c at the beginning and at the end.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = AESAM(model.parameters(), torch.optim.SGD, model=model, lr=0.1, total_steps=100)
        >>> x, y = torch.randn(8, 3), torch.randn(8, 1)
        >>> def closure(rows=slice(None)):
        ...     optimizer.zero_grad()
        ...     loss = torch.nn.functional.mse_loss(model(x[rows]), y[rows])
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
        >>> optimizer.gradient_evaluations
        2.0

    Reference: arXiv 2304.14647.
    """

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: type[Optimizer],
        *,
        total_steps: int,
        rho: float = 0.05,
        decay: float = 0.9,
        first: float = 1.0,
        last: float = -1.0,
        **options: Any,
    ) -> None:
        schedule = GradientNormSchedule(total_steps, decay, first, last)
        super().__init__(params, base_optimizer, schedule=schedule, rho=rho, **options)


class AELookSAM(SharpnessAware):
    r"""LookSAM whose second gradients are taken where `AESAM` would take them.

        SAM's step, h_v kept, iff |g|^2 >= m + c sqrt(v);   otherwise with g + alpha |g| h_v / |h_v|

    Args:
        params, base_optimizer, rho, **options: As for `SAM`.
        total_steps, decay, first, last: As for `AESAM`; the defaults pay at about a fifth of the steps.
        alpha, psf_dtype: As for `LookSAM`.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = AELookSAM(model.parameters(), torch.optim.SGD, model=model, lr=0.1, total_steps=100)
        >>> x, y = torch.randn(8, 3), torch.randn(8, 1)
        >>> def closure(rows=slice(None)):
        ...     optimizer.zero_grad()
        ...     loss = torch.nn.functional.mse_loss(model(x[rows]), y[rows])
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
        >>> optimizer.gradient_evaluations
        2.0

    Reference: arXiv 2304.14647.
    """

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: type[Optimizer],
        *,
        total_steps: int,
        rho: float = 0.1,
        decay: float = 0.9,
        first: float = 1.0,
        last: float = 0.5,
        alpha: float = 0.7,
        psf_dtype: torch.dtype | str | None = None,
        **options: Any,
    ) -> None:
        schedule = GradientNormSchedule(total_steps, decay, first, last)
        psf = OrthogonalPSF(alpha, floating_point_type(psf_dtype))
        super().__init__(params, base_optimizer, schedule=schedule, psf=psf, rho=rho, **options)


class ESAM(SharpnessAware):
    r"""Efficient SAM: some tensors are displaced, and the rows whose loss rises most are used.

        e   = rho g / |g| / beta on each tensor with probability beta, 0 otherwise
        A   = the rows, a share of the batch, whose loss rises most from w to w + e
        base optimizer steps from w with the gradient at w + e of the rows A

    Costs 1 + share gradients and a forward pass a step.

    Args:
        params, base_optimizer, rho, **options: As for `SAM`.
        beta: Probability of a tensor to be displaced.
        share: Of the batch, that the second gradient is taken on.
        seed: Of the draws of tensors.
        perturbed_roles: Roles that are perturbed where groups have roles.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = ESAM(model.parameters(), torch.optim.SGD, model=model, lr=0.1)
        >>> x, y = torch.randn(8, 3), torch.randint(0, 2, (8,))
        >>> def closure(rows=slice(None), backward=True):
        ...     optimizer.zero_grad()
        ...     losses = torch.nn.functional.cross_entropy(model(x[rows]), y[rows], reduction="none")
        ...     if backward:
        ...         losses.mean().backward()
        ...     return losses.mean(), losses.detach()
        >>> loss = optimizer.step(closure)
        >>> optimizer.gradient_evaluations, optimizer.forwards
        (1.5, 3)

    Caveats:
        The closure takes rows as a tensor of row numbers and returns the losses of the rows too, as above.

    Reference: arXiv 2110.03141.
    """

    settles: ClassVar[tuple[str, ...]] = ("perturbation",)

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: type[Optimizer],
        *,
        rho: float = 0.05,
        beta: float = 0.5,
        share: float = 0.5,
        seed: int = 0,
        perturbed_roles: Sequence[str] = ("weight",),
        **options: Any,
    ) -> None:
        perturbation = Perturbation(direction=RandomTensors(beta, seed), roles=perturbed_roles)
        super().__init__(params, base_optimizer, perturbation=perturbation, method=Selected(share), rho=rho, **options)
