"""Controls: what a cleverer method has to be better than at the same price."""

from __future__ import annotations

from typing import Any, ClassVar

from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from qat_vsam.errors import ConfigError, explain
from qat_vsam.optim.budget_schedule import UnpaidBudget
from qat_vsam.optim.methods import Split
from qat_vsam.optim.psf import PSF
from qat_vsam.optim.schedule import check_share
from qat_vsam.optim.sharpness_aware import SharpnessAware
from qat_vsam.optim.step_schedules import During, Periodic, Ramp, RandomSteps


class SplitSGD(SharpnessAware):
    r"""The control: the base optimizer on batches cut where and when `VSAM` cuts them, and nothing else.

        at the steps at which VSAM with the same share and a budget of 1 + rate share pays, and g elsewhere:

        g_A = gradient of the part at w;   g_B = gradient of the rest at w
        base optimizer steps with  q g_A + (1 - q) g_B
        (no second gradient, no h)

    Without batch norm this is the base optimizer. With it, each piece is normalised by its own statistics,
    which regularises; a method that cuts the batch has to be better than this, as often cut. Costs 1 gradient a step,
    in two passes where the batch is cut.

    Args:
        params, base_optimizer, **options: As for `SAM`.
        share: q.
        rate: Share of the steps at which the batch is cut: VSAM's (gradient_budget - 1) / share, 0.6 as it comes, or
            1 / interval; 1 for each step.

    Raises:
        ConfigError: A share or a rate that cannot be.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = SplitSGD(model.parameters(), torch.optim.SGD, model=model, rate=1.0, lr=0.1)
        >>> x, y = torch.randn(8, 3), torch.randn(8, 1)
        >>> def closure(rows=slice(None)):
        ...     optimizer.zero_grad()
        ...     loss = torch.nn.functional.mse_loss(model(x[rows]), y[rows])
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure, batch_size=len(x))
        >>> optimizer.gradient_evaluations, optimizer.forwards
        (1.0, 2)

    Caveats:
        Needs `batch_size`; without it the batch is not cut.

    Reference: "ghost" batch norm, arXiv 1705.08741.
    """

    settles: ClassVar[tuple[str, ...]] = ("rho", "perturbation", "perturbed_roles", "dropout")

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: type[Optimizer],
        *,
        share: float = 0.25,
        rate: float = 0.6,
        **options: Any,
    ) -> None:
        if not 0 <= rate <= 1:
            raise ConfigError(explain("rate", rate, "a share of the steps in [0, 1]", "use 0.6, or 1 for each step"))
        schedule = UnpaidBudget(1 + rate * check_share(share), share)
        super().__init__(params, base_optimizer, method=Split(), schedule=schedule, rho=0.0, **options)


class PeriodicSAM(SharpnessAware):
    r"""SAM at every k-th step; h reused in between, decayed, if `reuse` is not 0. Costs 1 + share/k.

    Args:
        params, base_optimizer, rho, **options: As for `SAM`.
        interval: k.
        share: Of the batch, that the second gradient is taken on.
        reuse: gamma, as for `VSAM`.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = PeriodicSAM(model.parameters(), torch.optim.SGD, model=model, lr=0.1, interval=2)
        >>> x, y = torch.randn(8, 3), torch.randn(8, 1)
        >>> def closure(rows=slice(None)):
        ...     optimizer.zero_grad()
        ...     loss = torch.nn.functional.mse_loss(model(x[rows]), y[rows])
        ...     loss.backward()
        ...     return loss
        >>> for _ in range(4):
        ...     loss = optimizer.step(closure)
        >>> optimizer.gradient_evaluations / optimizer.steps
        1.5

    Reference: arXiv 2203.09962.
    """

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: type[Optimizer],
        *,
        rho: float = 0.05,
        interval: int = 5,
        share: float = 1.0,
        reuse: float = 0.0,
        **options: Any,
    ) -> None:
        schedule, psf = Periodic(interval, share), PSF(reuse)
        super().__init__(params, base_optimizer, schedule=schedule, psf=psf, rho=rho, **options)


class RandomCountSAM(SharpnessAware):
    r"""SAM at a given number of steps of a run, drawn at random; h reused in between as for `VSAM`.

    Args:
        params, base_optimizer, rho, **options: As for `SAM`.
        count: Second gradients over the run.
        fraction: Instead of `count`: second gradients as a fraction of `total_steps`.
        total_steps: Length of the run.
        reuse: gamma.
        seed: Of the draws.

    Raises:
        ConfigError: Not one of `count` and `fraction` was given, or it is out of range.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = RandomCountSAM(model.parameters(), torch.optim.SGD, model=model, lr=0.1, count=1, total_steps=2)
        >>> x, y = torch.randn(8, 3), torch.randn(8, 1)
        >>> def closure(rows=slice(None)):
        ...     optimizer.zero_grad()
        ...     loss = torch.nn.functional.mse_loss(model(x[rows]), y[rows])
        ...     loss.backward()
        ...     return loss
        >>> for _ in range(2):
        ...     loss = optimizer.step(closure)
        >>> optimizer.gradient_evaluations
        3.0

    Reference: the control that arXiv 2403.08821 needs.
    """

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: type[Optimizer],
        *,
        total_steps: int,
        count: int | None = None,
        fraction: float | None = None,
        rho: float = 0.05,
        reuse: float = 0.7,
        seed: int = 0,
        **options: Any,
    ) -> None:
        if (count is None) == (fraction is None):
            given = f"count={count}, fraction={fraction}"
            raise ConfigError(explain("random steps", given, "one of the two", "give count=20 alone"))
        if fraction is not None:
            if not 0 <= fraction <= 1:
                raise ConfigError(explain("fraction", fraction, "a number in [0, 1]", "use 0.15"))
            count = round(fraction * total_steps)
        schedule = RandomSteps(count=count, total_steps=total_steps, seed=seed)
        super().__init__(params, base_optimizer, schedule=schedule, psf=PSF(reuse), rho=rho, **options)


class RampSAM(SharpnessAware):
    r"""SAM at a rate that changes along a straight line over the run; h reused in between as for `VSAM`.

    Args:
        params, base_optimizer, rho, **options: As for `SAM`.
        first, last: The rate at the beginning and at the end.
        total_steps: Length of the run.
        reuse: gamma.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = RampSAM(model.parameters(), torch.optim.SGD, model=model, lr=0.1, first=0, total_steps=4)
        >>> x, y = torch.randn(8, 3), torch.randn(8, 1)
        >>> def closure(rows=slice(None)):
        ...     optimizer.zero_grad()
        ...     loss = torch.nn.functional.mse_loss(model(x[rows]), y[rows])
        ...     loss.backward()
        ...     return loss
        >>> for _ in range(4):
        ...     loss = optimizer.step(closure)
        >>> optimizer.gradient_evaluations
        5.0

    Reference: the control that arXiv 2403.08821 needs.
    """

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: type[Optimizer],
        *,
        total_steps: int,
        rho: float = 0.05,
        first: float = 0.02,
        last: float = 0.8,
        reuse: float = 0.7,
        **options: Any,
    ) -> None:
        schedule = Ramp(first, last, total_steps=total_steps)
        super().__init__(params, base_optimizer, schedule=schedule, psf=PSF(reuse), rho=rho, **options)


class LateSAM(SharpnessAware):
    r"""SAM during a part of the run, such as its last fifth; the base optimizer else.

    Args:
        params, base_optimizer, rho, **options: As for `SAM`.
        begin, end: The part, as shares of the run.
        total_steps: Length of the run.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = LateSAM(model.parameters(), torch.optim.SGD, model=model, lr=0.1, total_steps=5)
        >>> x, y = torch.randn(8, 3), torch.randn(8, 1)
        >>> def closure(rows=slice(None)):
        ...     optimizer.zero_grad()
        ...     loss = torch.nn.functional.mse_loss(model(x[rows]), y[rows])
        ...     loss.backward()
        ...     return loss
        >>> for _ in range(5):
        ...     loss = optimizer.step(closure)
        >>> optimizer.gradient_evaluations
        6.0

    Reference: arXiv 2410.10373.
    """

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: type[Optimizer],
        *,
        total_steps: int,
        rho: float = 0.05,
        begin: float = 0.8,
        end: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(
            params, base_optimizer, schedule=During(begin, end, total_steps=total_steps), rho=rho, **options
        )
