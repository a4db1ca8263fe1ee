"""`step()` without a closure: the one such call that has a meaning, and what to do instead of the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qat_vsam.errors import InputError, explain
from qat_vsam.optim.gradients import Gradients

if TYPE_CHECKING:
    from qat_vsam.optim.sharpness_aware import SharpnessAware


def step_without_closure(optimizer: SharpnessAware) -> Tensor:
    """Make the state that a step leaves, where all learning rates and gradients are zero; move no weight.

    `torch.distributed.checkpoint` calls `step()` so, and loads a checkpoint into the tensors that are then there.

    Raises:
        InputError: Any other call.
    """
    if all(float(group["lr"]) == 0 for group in optimizer.param_groups):
        gradients = {p: p.grad for p in optimizer.parameters() if p.grad is not None}
        if not any(bool(gradient.any()) for gradient in gradients.values()):
            optimizer.base.step()
            _make_room(optimizer, gradients)
            return torch.zeros(())
    raise InputError(
        explain(
            "step()",
            "no closure",
            "a function that zeroes the gradients, computes the loss, calls backward and returns it",
            "pass step(closure): the gradient at displaced weights is computed inside the step. Lightning passes "
            "one under automatic optimization; with accelerate call optimizer.step(closure), accelerator.backward "
            "inside the closure; for the Hugging Face Trainer override training_step",
        )
    )


def _make_room(optimizer: SharpnessAware, zeros: Gradients) -> None:
    direction = optimizer.perturbation.direction
    with optimizer.perturbation.points(optimizer.param_groups, optimizer.model) as points:
        slopes = {point.parameter: zeros[point.parameter] for point in points if point.parameter in zeros}
    memory = direction.next_memory({}, slopes if direction.remembers == "slopes" else zeros)
    direction.keep(optimizer.state, memory)
    if optimizer.method.uses_first:
        optimizer.psf.begin(optimizer.state, zeros)
