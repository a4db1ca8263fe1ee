"""SAM, and the members that differ from it in the perturbation alone. All cost 2 gradients a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from qat_vsam.optim.directions import Friendly
from qat_vsam.optim.perturbation import Perturbation
from qat_vsam.optim.points import AtNorms, BehindQuantizer
from qat_vsam.optim.radii import LossIncrease
from qat_vsam.optim.scales import Adaptive
from qat_vsam.optim.sharpness_aware import SharpnessAware


class SAM(SharpnessAware):
    r"""Sharpness-aware minimization: step with the gradient at the worst point nearby.

        g   = gradient at w
        g_s = gradient at w + rho g / |g|,   same batch
        base optimizer steps from w with g_s

    To first order g_s is the gradient of L(w) + rho |grad L(w)|. Costs 2 gradients a step; keeps no tensor
    between steps.

    Args:
        params: Parameters or groups; a group may carry `rho` and `role`.
        base_optimizer: Class of the optimizer that makes the step.
        rho: Radius; 0.05 to 0.1 is common, and it is the setting to tune.
        **options: `model` (needed if it has batch norms, observers or quantized layers), `perturbation` and the
            other options of `SharpnessAware`, and those of the base optimizer (lr, momentum, ...).

    Raises:
        InputError: The base optimizer or the perturbation does not fit.
        ConfigError: An option is unknown or out of range.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = SAM(model.parameters(), torch.optim.SGD, model=model, lr=0.1, rho=0.05)
        >>> x, y = torch.randn(8, 3), torch.randn(8, 1)
        >>> def closure(rows=slice(None)):
        ...     optimizer.zero_grad()
        ...     loss = torch.nn.functional.mse_loss(model(x[rows]), y[rows])
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
        >>> optimizer.gradient_evaluations
        2.0

    Caveats:
        Gains are large where data are scarce or labels noisy. Where a network underfits there is little to
        gain, and a radius that is too large costs accuracy.

    Reference: arXiv 2010.01412.
    """

    def __init__(self, params: ParamsT, base_optimizer: type[Optimizer], *, rho: float = 0.05, **options: Any) -> None:
        super().__init__(params, base_optimizer, rho=rho, **options)


class ASAM(SharpnessAware):
    r"""Adaptive SAM: the radius is relative to the weights, so rescaling a layer changes nothing.

        T   = |w| + eta on tensors of two or more axes, 1 on biases and scales
        g_s = gradient at w + rho T^2 g / |T g|
        base optimizer steps from w with g_s

    Args:
        params, base_optimizer, **options: As for `SAM`.
        rho: Radius in units of T; published 0.5 (CIFAR-10) and 1.0 (CIFAR-100, ImageNet).
        eta: Smallest T of a weight.
        perturbed_roles: Roles that are perturbed where groups have roles.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = ASAM(model.parameters(), torch.optim.SGD, model=model, lr=0.1, rho=0.5)
        >>> x, y = torch.randn(8, 3), torch.randn(8, 1)
        >>> def closure(rows=slice(None)):
        ...     optimizer.zero_grad()
        ...     loss = torch.nn.functional.mse_loss(model(x[rows]), y[rows])
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
        >>> optimizer.gradient_evaluations
        2.0

    Caveats:
        The package `pytorch_optimizer` takes T = |w| on all tensors: there a weight or bias of zero, where biases
        start, is not displaced at all. Without biases and with eta = 0 the two are equal. The authors' code leaves
        biases unscaled, as here, but scales the weights of norm layers too.

    Reference: arXiv 2102.11600.
    """

    settles: ClassVar[tuple[str, ...]] = ("perturbation",)

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: type[Optimizer],
        *,
        rho: float = 0.5,
        eta: float = 0.01,
        perturbed_roles: Sequence[str] = ("weight",),
        **options: Any,
    ) -> None:
        perturbation = Perturbation(scale=Adaptive(eta), roles=perturbed_roles)
        super().__init__(params, base_optimizer, perturbation=perturbation, rho=rho, **options)


class FSAM(SharpnessAware):
    r"""Friendly SAM: ascend along the noise of the batch's gradient, not along what all batches share.

        g_s = gradient at w + rho d / |d|,   d = g - sigma m     (first step: d = g)
        m  <- decay m + (1 - decay) g                            (first step: m = g)
        base optimizer steps from w with g_s

    Keeps one tensor per parameter between steps, m.

    Args:
        params, base_optimizer, **options: As for `SAM`.
        rho: Radius; published 0.2.
        sigma: How much of the mean is taken off; 0 is SAM.
        decay: Of the mean; published 0.6 to 0.95.
        perturbed_roles: Roles that are perturbed where groups have roles.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = FSAM(model.parameters(), torch.optim.SGD, model=model, lr=0.1)
        >>> x, y = torch.randn(8, 3), torch.randn(8, 1)
        >>> def closure(rows=slice(None)):
        ...     optimizer.zero_grad()
        ...     loss = torch.nn.functional.mse_loss(model(x[rows]), y[rows])
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
        >>> optimizer.gradient_evaluations
        2.0

    Reference: arXiv 2403.12350.
    """

    settles: ClassVar[tuple[str, ...]] = ("perturbation",)

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: type[Optimizer],
        *,
        rho: float = 0.2,
        sigma: float = 1.0,
        decay: float = 0.9,
        perturbed_roles: Sequence[str] = ("weight",),
        **options: Any,
    ) -> None:
        perturbation = Perturbation(direction=Friendly(sigma, decay), roles=perturbed_roles)
        super().__init__(params, base_optimizer, perturbation=perturbation, rho=rho, **options)


class SAMON(SharpnessAware):
    r"""SAM-ON: only the scales and shifts of norm layers are displaced.

        g_s = gradient at w + e,   e = rho g / |g| on parameters of norm layers, |g| over these, 0 elsewhere
        base optimizer steps from w, with all parameters, with g_s

    Args:
        params, base_optimizer, **options: As for `SAM`; `model` is needed.
        rho: Radius; larger than SAM's, since fewer parameters share it.
        perturbed_roles: Roles whose norm layers are perturbed where groups have roles.

    Raises:
        InputError: No `model`, or one without trainable norm layers.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
        >>> optimizer = SAMON(model.parameters(), torch.optim.SGD, model=model, lr=0.1)
        >>> x, y = torch.randn(8, 3), torch.randn(8, 1)
        >>> def closure(rows=slice(None)):
        ...     optimizer.zero_grad()
        ...     loss = torch.nn.functional.mse_loss(model(x[rows]), y[rows])
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
        >>> optimizer.gradient_evaluations
        2.0

    Reference: arXiv 2306.04226.
    """

    settles: ClassVar[tuple[str, ...]] = ("perturbation",)

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: type[Optimizer],
        *,
        rho: float = 0.5,
        perturbed_roles: Sequence[str] = ("norm",),
        **options: Any,
    ) -> None:
        perturbation = Perturbation(place=AtNorms(), roles=perturbed_roles)
        super().__init__(params, base_optimizer, perturbation=perturbation, rho=rho, **options)


class LESAM(SharpnessAware):
    r"""Loss-equated SAM: the radius is set by how far the loss shall rise.

        r   = min(sigma / |g|, rho)            with `largest` also at most largest |w|
        g_s = gradient at w + r g / |g|
        base optimizer steps from w with g_s

    With `total_steps` sigma falls to zero by a half cosine over the last part (`tail`) of the run.

    Args:
        params, base_optimizer, **options: As for `SAM`.
        sigma: Rise of the loss, to first order.
        rho: Largest radius.
        largest: Largest radius in units of |w|; None, as published, for no such bound.
        total_steps, tail: See above; a tail other than 0.2 needs total_steps.
        perturbed_roles: Roles that are perturbed where groups have roles.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = LESAM(model.parameters(), torch.optim.SGD, model=model, lr=0.1)
        >>> x, y = torch.randn(8, 3), torch.randn(8, 1)
        >>> def closure(rows=slice(None)):
        ...     optimizer.zero_grad()
        ...     loss = torch.nn.functional.mse_loss(model(x[rows]), y[rows])
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
        >>> optimizer.gradient_evaluations
        2.0

    Caveats:
        Where the gradient vanishes the radius is `rho`, which therefore still matters on fitted data. The
        paper's constants could not be read; the defaults are ours.

    Reference: arXiv 2605.10183.
    """

    settles: ClassVar[tuple[str, ...]] = ("perturbation",)

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: type[Optimizer],
        *,
        sigma: float = 0.1,
        rho: float = 0.5,
        largest: float | None = None,
        total_steps: int | None = None,
        tail: float = 0.2,
        perturbed_roles: Sequence[str] = ("weight",),
        **options: Any,
    ) -> None:
        perturbation = Perturbation(radius=LossIncrease(sigma, largest, total_steps, tail), roles=perturbed_roles)
        super().__init__(params, base_optimizer, perturbation=perturbation, rho=rho, **options)


class SAQ(SharpnessAware):
    r"""Sharpness-aware quantization: the displacement is added behind the weight quantizers.

        g_q = gradient at Q(w)
        g_s = gradient with Q(w) + rho g_q / |g_q| in place of Q(w)
        base optimizer steps from w with g_s; the latent weight never moves

    Norms and biases are displaced with the weights, as published; other parameters than quantized weights move
    themselves.

    Args:
        params, base_optimizer, **options: As for `SAM`; `model` is needed.
        rho: Radius; published 0.3 to 0.4.
        perturbed_roles: Roles that are perturbed where groups have roles.

    Raises:
        InputError: No `model`, or one without quantized layers.

    Example:
        >>> import torch
        >>> from qat_vsam.quant import QuantSpec, param_groups, prepare
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
        >>> summary = prepare(model, QuantSpec.preset("w4"))
        >>> optimizer = SAQ(param_groups(model), torch.optim.SGD, model=model, lr=0.1)
        >>> x, y = torch.randn(8, 3), torch.randn(8, 1)
        >>> def closure(rows=slice(None)):
        ...     optimizer.zero_grad()
        ...     loss = torch.nn.functional.mse_loss(model(x[rows]), y[rows])
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
        >>> optimizer.gradient_evaluations
        2.0

    Reference: arXiv 2111.12273.
    """

    settles: ClassVar[tuple[str, ...]] = ("perturbation",)

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: type[Optimizer],
        *,
        rho: float = 0.3,
        perturbed_roles: Sequence[str] = ("weight", "norm", "bias"),
        **options: Any,
    ) -> None:
        perturbation = Perturbation(place=BehindQuantizer(), roles=perturbed_roles)
        super().__init__(params, base_optimizer, perturbation=perturbation, rho=rho, **options)
