"""VSAM: a second gradient now and then, on part of the batch; reused in between, if asked for."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from qat_vsam.errors import ConfigError, did_you_mean, explain
from qat_vsam.optim.budget_schedule import BudgetSchedule
from qat_vsam.optim.methods import AscendPart, Part
from qat_vsam.optim.perturbation import Perturbation
from qat_vsam.optim.psf import PSF, floating_point_type
from qat_vsam.optim.radii import FixedRadius, LossBound
from qat_vsam.optim.sharpness_aware import SharpnessAware

RHO = 0.05
_BUDGET = 1.15
_METHODS = {"part": (Part, 0.25), "ascend_part": (AscendPart, 0.25), "interval": (Part, 1.0)}
_SAME = 1e-9


class VSAM(SharpnessAware):
    r"""Sharpness-aware minimization that pays for a second gradient now and then.

        a step that pays:  with  q g_A + (1 - q) g_B + c h,   h = (gradient of A at w + r g_A / |g_A|) - g_A
        i steps later:     with  g + gamma^i c h              while i <= 6 and gamma > 0
        otherwise:         with  g

    A is a part of the batch of share q, B the rest, r = min(rho, 2 kappa sqrt(L_A) / |g_A|) with L_A the loss of A at
    w, and c in [0, 1] the share of h that is no noise of rounding (`psf.beyond_rounding`): 1 in a smooth net, less
    where a displacement makes quantizers round to other values.

    Steps pay so often that the mean cost never exceeds `gradient_budget` gradients a step and keeps up with it, by
    less than one payment. The methods are "part" (as above), "ascend_part" (ascend along g_A, then one gradient of
    the whole batch at w + e; no reuse) and "interval" (the part is the whole batch: SAM at intervals).

    With reuse, one tensor per parameter is kept between steps, h; without, nothing. The published algorithm is
    `VSAMPaper`; a schedule of your own goes to `SharpnessAware(..., schedule=...)`.

    Args:
        params, base_optimizer, **options: As for `SAM`.
        rho: Radius, the same for data of any size. A larger one is a choice, to be made on validation data.
        largest_rise: kappa, the most that the root of the loss may rise, to first order, whatever rho is
            (`LossBound`): it holds pretrained nets near a steep minimum. Wants a closure that returns the mean loss,
            not negative and not scaled. None: r = rho; a perturbation with a radius of its own needs that.
        gradient_budget: Mean cost in gradients a step that is not exceeded. None: 1.15, or with `interval` its cost.
        method: "part", "ascend_part" or "interval".
        share: q. None: 1/4, or what the budget needs if that is more; 1 for "interval".
        interval: Pay at every interval-th step: the budget is then 1 + share / interval, and no other.
        reuse: gamma; 0 for no reuse. Costs one tensor per parameter, and wants a rho about half as large.
        total_steps: Length of the run, for spend="early" alone.
        spend: "evenly", "early" (all in the first 0.6 of the run) or "learning_rate" (in proportion to it).
        psf_dtype: What h is kept in, `torch.bfloat16` or "bfloat16" for half the memory; None for the weights' own.

    Raises:
        InputError: The base optimizer or the perturbation does not fit.
        ConfigError: An option is unknown, out of range, or without effect beside the others.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = VSAM(model.parameters(), torch.optim.SGD, model=model, lr=0.1)
        >>> x, y = torch.randn(8, 3), torch.randn(8, 1)
        >>> def closure(rows=slice(None)):
        ...     optimizer.zero_grad()
        ...     loss = torch.nn.functional.mse_loss(model(x[rows]), y[rows])
        ...     loss.backward()
        ...     return loss
        >>> for _ in range(20):
        ...     loss = optimizer.step(closure, batch_size=len(x))
        >>> optimizer.gradient_evaluations / optimizer.steps
        1.15

    Caveats:
        "part" also cuts batch norm's batch, which alone changes results: compare with `SplitSGD`. Cost is not
        time: on small tensors three passes take longer than their share; share=0.5 makes fewer of them. Where
        SAM does not pay, neither does this.

    Reference: arXiv 2403.08821 (h and its reuse); the second gradient on part of a batch follows arXiv 2010.01412
    (m-sharpness) and 2110.08529.
    """

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: type[Optimizer],
        *,
        rho: float = RHO,
        largest_rise: float | None = 0.35,
        gradient_budget: float | None = None,
        method: str = "part",
        share: float | None = None,
        interval: int | None = None,
        reuse: float = 0.0,
        total_steps: int | None = None,
        spend: str = "evenly",
        psf_dtype: torch.dtype | str | None = None,
        **options: Any,
    ) -> None:
        if "schedule" in options:
            do = "use VSAMPaper for the published schedule, SharpnessAware(..., schedule=...) for one of your own"
            raise ConfigError(explain("schedule", repr(options["schedule"]), "no schedule, VSAM has a budget", do))
        share, gradient_budget = _share_and_budget(method, share, interval, gradient_budget)
        build_method, _ = _METHODS[method]
        super().__init__(
            params,
            base_optimizer,
            method=build_method(),
            schedule=BudgetSchedule(gradient_budget, share, total_steps=total_steps, spend=spend),
            psf=PSF(gamma=reuse, dtype=floating_point_type(psf_dtype)),
            rho=rho,
            **options,
        )
        if largest_rise is not None:
            self.perturbation = _bounded(self.perturbation, largest_rise)

    @classmethod
    def derive(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        found = super().derive(options)
        settings = (found[name] for name in ("method", "share", "interval", "gradient_budget"))
        share, gradient_budget = _share_and_budget(*settings)
        return found | {"share": share, "gradient_budget": gradient_budget}


def _share_and_budget(
    method: str, share: float | None, interval: int | None, gradient_budget: float | None
) -> tuple[float, float]:
    """Both as numbers; what is said twice has to agree."""
    if method not in _METHODS:
        raise ConfigError(explain("method", repr(method), "a method", did_you_mean(str(method), _METHODS)))
    _, usual_share = _METHODS[method]
    if method == "interval" and share not in (None, 1):
        do = 'leave it out, or use method="part"'
        raise ConfigError(explain("share", share, 'the whole batch, 1, for method="interval"', do))
    if interval is None:
        budget = _BUDGET if gradient_budget is None else gradient_budget
        return max(usual_share, min(budget - 1, 1.0)) if share is None else share, budget
    if interval < 1:
        raise ConfigError(explain("interval", interval, "a number of steps >= 1", "use 2"))
    share = usual_share if share is None else share
    budget = 1 + share / interval
    if gradient_budget is not None and not abs(gradient_budget - budget) < _SAME:
        rule = f"{budget:g}, which interval={interval} with share={share:g} costs"
        raise ConfigError(explain("gradient_budget", gradient_budget, rule, "give one of the two"))
    return share, budget


def _bounded(perturbation: Perturbation, largest_rise: float) -> Perturbation:
    """A copy of the perturbation whose radius is bounded by the loss."""
    if type(perturbation.radius) is not FixedRadius:
        got = f"{largest_rise} with a perturbation whose radius is {type(perturbation.radius).__name__}"
        do = "pass largest_rise=None, for that radius is not rho"
        raise ConfigError(explain("largest_rise", got, "a bound on a radius of rho", do))
    bounded = copy.copy(perturbation)
    bounded.radius = LossBound(largest_rise)
    return bounded
