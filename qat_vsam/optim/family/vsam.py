"""VSAM: a second gradient now and then, on part of the batch; reused in between, if asked for."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from qat_vsam.errors import ConfigError, did_you_mean, explain
from qat_vsam.optim.budget_schedule import BudgetSchedule
from qat_vsam.optim.methods import AscendPart, Part
from qat_vsam.optim.psf import PSF, floating_point_type
from qat_vsam.optim.radii import FixedRadius, LossBound
from qat_vsam.optim.schedule import Schedule
from qat_vsam.optim.sharpness_aware import SharpnessAware
from qat_vsam.optim.variance_schedule import VarianceSchedule

_METHODS = {"part": (Part, 0.25), "ascend_part": (AscendPart, 0.25), "interval": (Part, 1.0)}
_SCHEDULES = ("budget", "variance")
_PUBLISHED_RHO, _PUBLISHED_REUSE = 0.05, 0.7
# What suited nets trained on 300 to 5,000 images, and did no harm to one that saw 100,000 different views.
_RHO_OF_ONE_EXAMPLE, _SMALLEST_RHO, _LARGEST_RHO, _RHO_UNINFORMED = 9.0, 0.02, 0.3, 0.1


class VSAM(SharpnessAware):
    r"""Sharpness-aware minimization that pays for a second gradient now and then.

        a step that pays:  with  q g_A + (1 - q) g_B + c h,   h = (gradient of A at w + rho g_A / |g_A|) - g_A
        i steps later:     with  g + gamma^i c h              while i <= 6 and gamma > 0
        otherwise:         with  g

    A is a part of the batch of share q, B the rest, and c in [0, 1] the share of h that is no noise of rounding
    (`psf.beyond_rounding`): 1 in a smooth net, less where a displacement makes quantizers round to other values.
    When to pay is decided by `schedule`:

    - "budget": so often that the mean cost never exceeds `gradient_budget` gradients a step and keeps up
      with it, by less than one payment. The methods are "part" (as above), "ascend_part" (ascend along g_A,
      then one gradient of the whole batch at w + e; no reuse) and "interval" (the part is the whole batch:
      SAM at intervals).
    - "variance": the published algorithm. Whole-batch SAM steps, at a rate that follows the spread of |h|
      and its ratio to |g|, after a warm-up of plain SAM.

    With reuse, one tensor per parameter is kept between steps, h; without, nothing.

    Args:
        params, base_optimizer, **options: As for `SAM`.
        rho: Radius. None: min(r, 0.7 sqrt(L_A) / |g_A|), or 0.05 for "variance". r is what `train_size` tells. The
            other bound lets the root of the loss rise by 0.35 and no more, for pretrained nets near a steep minimum
            (`LossBound`). It wants a closure that returns the mean loss, unscaled.
        train_size: Number N of different training examples, for rho=None: r = 9 / sqrt(N) within [0.02, 0.3]. With
            random augmentation each view is another example: N is images times epochs. The fewer there are, the
            more a net learns of them by heart, which is what a large radius prevents; where there are many, it
            prevents the net from fitting them in the time there is. None: r = 0.1.
        schedule: "budget", "variance" or a `Schedule`.
        gradient_budget: Mean cost in gradients a step that is not exceeded; "budget" only.
        method: "part", "ascend_part" or "interval"; "budget" only.
        share: q. None: 1/4, or what the budget needs if that is more; 1 for "interval".
        interval: Pay at every interval-th step; then the budget is 1 + share / interval, whatever was given.
        reuse: gamma. None: no reuse, or the published 0.7 for "variance". Costs one tensor per parameter, and
            wants a rho about half as large.
        total_steps: Length of the run, for spend="early".
        spend: "evenly", "early" (all in the first 0.6 of the run) or "learning_rate" (in proportion to it).
        warmup_steps: Steps of plain SAM at the beginning; "variance" needs it (published: those of 3 epochs).
        window, blocks, cap, gains, norm_tensors, bias, seed, uniform: Constants of "variance"; see
            `VarianceSchedule`.
        psf_dtype: What h is kept in, `torch.bfloat16` or "bfloat16" for half the memory; None for the weights' own.

    Raises:
        InputError: The base optimizer or the perturbation does not fit.
        ConfigError: An option is unknown or out of range.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = VSAM(model.parameters(), torch.optim.SGD, model=model, lr=0.1, rho=0.05)
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
        SAM does not pay, neither does this. "variance" with bias="relative" drifts to its cap on noise alone,
        and adapts over windows of 50 steps, too slowly for short runs.

    Reference: arXiv 2403.08821 (schedule "variance", reuse); the second gradient on part of a batch follows
    arXiv 2010.01412 (m-sharpness) and 2110.08529.
    """

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: type[Optimizer],
        *,
        rho: float | None = None,
        train_size: int | None = None,
        schedule: str | Schedule = "budget",
        gradient_budget: float = 1.15,
        method: str = "part",
        share: float | None = None,
        interval: int | None = None,
        reuse: float | None = None,
        total_steps: int | None = None,
        spend: str = "evenly",
        warmup_steps: int | None = None,
        window: int = 50,
        blocks: int = 5,
        cap: float = 0.8,
        gains: Sequence[float] = (0.13, 0.13),
        norm_tensors: int = 10,
        bias: str = "relative",
        seed: int = 0,
        uniform: Callable[[int], float] | None = None,
        psf_dtype: torch.dtype | str | None = None,
        **options: Any,
    ) -> None:
        if method not in _METHODS:
            raise ConfigError(explain("method", repr(method), "a method", did_you_mean(str(method), _METHODS)))
        build_method, default_share = _METHODS[method]
        if schedule == "budget":
            if share is None:
                share = default_share if interval is not None else max(default_share, min(gradient_budget - 1, 1.0))
            if interval is not None:
                if interval < 1:
                    raise ConfigError(explain("interval", interval, "a number of steps >= 1", "use 2"))
                gradient_budget = 1 + share / interval
            schedule = BudgetSchedule(gradient_budget, share, total_steps=total_steps, spend=spend)
        elif schedule == "variance":
            if warmup_steps is None:
                do = "pass warmup_steps=3 * len(batches), as published"
                raise ConfigError(explain("warmup_steps", None, "the steps of plain SAM to begin with", do))
            build_method = Part
            schedule = VarianceSchedule(
                warmup_steps=warmup_steps,
                window=window,
                blocks=blocks,
                cap=cap,
                gains=gains,
                norm_tensors=norm_tensors,
                bias=bias,
                seed=seed,
                uniform=uniform,
            )
        elif not isinstance(schedule, Schedule):
            advice = did_you_mean(str(schedule), _SCHEDULES)
            raise ConfigError(explain("schedule", repr(schedule), "a schedule", advice))
        published = isinstance(schedule, VarianceSchedule)
        bound = rho is None and not published
        if rho is None:
            rho = _PUBLISHED_RHO if published else _own_rho(train_size)
        if reuse is None:
            reuse = _PUBLISHED_REUSE if published else 0.0
        super().__init__(
            params,
            base_optimizer,
            method=build_method(),
            schedule=schedule,
            psf=PSF(gamma=reuse, dtype=floating_point_type(psf_dtype)),
            rho=rho,
            **options,
        )
        if bound and type(self.perturbation.radius) is FixedRadius:
            self.perturbation = copy.copy(self.perturbation)
            self.perturbation.radius = LossBound()


def _own_rho(train_size: int | None) -> float:
    if train_size is None:
        return _RHO_UNINFORMED
    if train_size < 1:
        raise ConfigError(explain("train_size", train_size, "a number of examples >= 1", "pass len(dataset)"))
    return min(max(_RHO_OF_ONE_EXAMPLE / math.sqrt(train_size), _SMALLEST_RHO), _LARGEST_RHO)
