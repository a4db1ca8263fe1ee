"""The scale that a `torch.amp.GradScaler` puts on a loss: taken out of each pass, and one decision a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.optim import Optimizer

from qat_vsam.errors import ConfigError, InputError, explain
from qat_vsam.optim.gradients import global_norm


class LossScale:
    """Stands between an optimizer of several passes and a GradScaler, which knows steps of one.

    Each pass is unscaled by itself, so that the ascent and the mixture see true gradients. The scaler is told
    once, before the step, whether any of the passes overflowed.

    Args:
        scaler: The one that the closure scales its loss with.

    Example:
        >>> scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        >>> scale, gradient = LossScale(scaler), scaler.scale(torch.tensor([0.5]))
        >>> norms = [scale.unscale([gradient])]
        >>> gradient, scale.accepts(norms)
        (tensor([0.5000]), True)
        >>> scaler.update()
    """

    def __init__(self, scaler: torch.amp.GradScaler) -> None:
        self.scaler = scaler
        self._judge = _Judge()

    def unscale(self, gradients: Sequence[Tensor]) -> Tensor:
        """Divide the gradients of one pass by the scale, in place, without waiting for the device.

        Returns:
            Their norm, for `accepts`.

        Raises:
            InputError: A gradient is float16, whose range a scaled loss leaves no room in.
        """
        if any(gradient.dtype == torch.float16 for gradient in gradients):
            do = "keep the parameters in float32 and run the forward pass under torch.autocast"
            raise InputError(explain("grad_scaler", "gradients of type float16", "float32 gradients", do))
        for device in {gradient.device for gradient in gradients}:
            inverse = self.scaler.scale(torch.ones((), device=device)).reciprocal()
            torch._foreach_mul_([gradient for gradient in gradients if gradient.device == device], inverse)
        return global_norm(gradients)

    def accepts(self, norms: Sequence[Tensor]) -> bool:
        """Whether all norms of a step are finite; the scaler hears of it and waits for the device, once.

        Raises:
            InputError: `update()` was not called since the last step.
        """
        together = torch.stack([norm.to(norms[0]) for norm in norms])
        self._judge.watch(together)
        try:
            self.scaler.unscale_(self._judge)  # type: ignore[arg-type]
        except RuntimeError as error:
            do = "call scaler.update() after each optimizer.step(closure)"
            raise InputError(
                explain("grad_scaler", "a second step without update()", "one update a step", do)
            ) from error
        return self.scaler.step(self._judge) is not None  # type: ignore[arg-type]


class _Judge:
    """What the scaler takes for the optimizer: its step is made, and not None, unless a number is not finite."""

    def __init__(self) -> None:
        self.param_groups: list[dict[str, Any]] = []

    def watch(self, numbers: Tensor) -> None:
        stand_in = torch.empty_like(numbers)
        stand_in.grad = numbers
        self.param_groups = [{"params": [stand_in]}]

    def step(self) -> float:
        return 1.0


def scales(scaler: torch.amp.GradScaler | None) -> TypeGuard[torch.amp.GradScaler]:
    """Whether there is a scaler, and one that is enabled."""
    return scaler is not None and scaler.is_enabled()


def policy(nonfinite: str | None, scaler: torch.amp.GradScaler | None) -> str:
    """What a gradient that is not finite does, as a name; an enabled scaler leaves no choice.

    Raises:
        ConfigError: Another choice was made beside a scaler.
    """
    if not scales(scaler):
        return "raise" if nonfinite is None else nonfinite
    if nonfinite not in (None, "skip"):
        do = "leave it out, for a scaler skips such steps"
        raise ConfigError(explain("nonfinite", repr(nonfinite), '"skip" with a grad_scaler', do))
    return "skip"


def refuse_step_of_a_scaler(optimizer: Optimizer) -> None:
    """Raise InputError if the step is made from within `GradScaler.step`, which hands its scale over just before."""
    if "grad_scale" not in optimizer.__dict__:
        return
    del optimizer.grad_scale, optimizer.found_inf  # type: ignore[attr-defined]
    raise InputError(
        explain(
            "GradScaler.step(optimizer, closure)",
            "a step from within the scaler, whose gradients would stay scaled in the second pass",
            "optimizer.step(closure), the scaler handed to the optimizer",
            "build it with grad_scaler=scaler, scale the loss in the closure, call optimizer.step(closure) and "
            "scaler.update()",
        )
    )
