"""VSAMPaper: the algorithm of the vSAM paper, with its constants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from qat_vsam.optim.methods import Part
from qat_vsam.optim.psf import PSF, floating_point_type
from qat_vsam.optim.sharpness_aware import SharpnessAware
from qat_vsam.optim.variance_schedule import VarianceSchedule


class VSAMPaper(SharpnessAware):
    r"""The published vSAM: whole-batch SAM at a rate that follows h, which is reused in between.

        a step that pays:  with  g_s,   h = g_s - g,   g_s the gradient at w + rho g / |g|
        i steps later:     with  g + gamma^i h         while i <= 6
        later still:       with  g

    After a warm-up of plain SAM, the rate of payments follows the spread of |h| and its ratio to |g|, over windows of
    steps (`VarianceSchedule`). One tensor per parameter is kept between steps, h. With a budget of gradients in place
    of this rate, and a second gradient on part of the batch, it is `VSAM`.

    Args:
        params, base_optimizer, **options: As for `SAM`.
        warmup_steps: Steps of plain SAM at the beginning; published: those of 3 epochs.
        rho: Radius.
        reuse: gamma; 0 for no reuse.
        window, blocks, cap, gains, norm_tensors, bias: Constants of the rate; see `VarianceSchedule`.
        seed: Of the draws of steps, which are a pure function of it and the step.
        uniform: A function of the step (0, 1, ...) in place of these draws; then `seed` stays 0.
        psf_dtype: What h is kept in; see `VSAM`.

    Raises:
        InputError: The base optimizer or the perturbation does not fit.
        ConfigError: An option is unknown, out of range, or without effect beside the others.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = VSAMPaper(model.parameters(), torch.optim.SGD, model=model, lr=0.1, warmup_steps=5)
        >>> x, y = torch.randn(8, 3), torch.randn(8, 1)
        >>> def closure(rows=slice(None)):
        ...     optimizer.zero_grad()
        ...     loss = torch.nn.functional.mse_loss(model(x[rows]), y[rows])
        ...     loss.backward()
        ...     return loss
        >>> for _ in range(20):
        ...     loss = optimizer.step(closure)
        >>> optimizer.gradient_evaluations / optimizer.steps
        1.25

    Caveats:
        With bias="relative", as published, noise alone drives the rate up to its cap. It adapts over windows of 50
        steps, too slowly for short runs.

    Reference: arXiv 2403.08821 and the code its authors published.
    """

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: type[Optimizer],
        *,
        warmup_steps: int,
        rho: float = 0.05,
        reuse: float = 0.7,
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
        psf = PSF(gamma=reuse, dtype=floating_point_type(psf_dtype))
        super().__init__(params, base_optimizer, method=Part(), schedule=schedule, psf=psf, rho=rho, **options)
