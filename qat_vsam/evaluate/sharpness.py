"""How sharp a minimum is: by how much the loss rises one step of a given length along its gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from qat_vsam.errors import ConfigError, DataError, explain
from qat_vsam.evaluate.accuracy import evaluation_mode


@dataclass(frozen=True)
class Sharpness:
    """The rise of the loss, averaged over batches.

    Attributes:
        value: mean of L(w + e) - L(w).
        loss: mean of L(w).
        rho: length of e.
        batches: number of batches.
    """

    value: float
    loss: float
    rho: float
    batches: int


def sharpness(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    rho: float = 0.05,
    *,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    parameters: Iterable[nn.Parameter] | None = None,
) -> Sharpness:
    """Mean over batches of L(w + rho g / |g|) - L(w), where g is the gradient of L at w on the same batch.

    To first order in rho this is rho |g|; at a minimum of one batch it is rho^2 / 2 times the curvature
    along g. The model is in evaluation mode, so batch norms use their running statistics and stay as they
    are. In a quantized model, g is the straight-through gradient, and a weight that no rounding border
    separates from w + e adds nothing.

    Args:
        model: maps images (B, C, H, W) to logits (B, K); weights, gradients and modes are afterwards as
            before.
        batches: pairs of images and labels (B,), on the model's device.
        rho: length of the step, over all parameters together.
        loss: mean loss of logits and labels.
        parameters: what is moved; None moves everything that requires a gradient.

    Raises:
        ConfigError: rho is not positive.
        DataError: there are no batches.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(model.weight, 2.0)
        >>> square = lambda y, _: (y**2).mean()
        >>> f"{sharpness(model, [(torch.ones(4, 1), torch.zeros(4))], rho=0.1, loss=square).value:.2f}"
        '0.41'
    """
    if not (rho > 0 and math.isfinite(rho)):
        raise ConfigError(explain("rho", rho, "a positive number", "choose a radius, e.g. 0.05"))
    chosen = [p for p in (model.parameters() if parameters is None else parameters) if p.requires_grad]
    rises, losses = [], []
    with evaluation_mode(model):
        for images, labels in batches:
            at_w = _loss_of(model, loss, images, labels)
            gradients = torch.autograd.grad(at_w, chosen, allow_unused=True)
            at_e = _loss_at(chosen, gradients, rho, partial(_loss_of, model, loss, images, labels))
            losses.append(float(at_w.detach()))
            rises.append(float(at_e) - losses[-1])
    if not rises:
        raise DataError(explain("batches", "no images", "at least one batch", "give images to evaluate"))
    return Sharpness(math.fsum(rises) / len(rises), math.fsum(losses) / len(losses), rho, len(rises))


def _loss_of(model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], images: Tensor, labels: Tensor) -> Tensor:
    return loss(model(images), labels)


@torch.no_grad()
def _loss_at(
    parameters: list[nn.Parameter],
    gradients: tuple[Tensor | None, ...],
    rho: float,
    loss: Callable[[], Tensor],
) -> Tensor:
    """The loss at w + rho g / |g|; w is put back by copy, because w + e - e is not always w."""
    pairs = [(p, g) for p, g in zip(parameters, gradients, strict=True) if g is not None]
    if not pairs:
        return loss()
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for _, g in pairs]))
    copies = [p.clone() for p, _ in pairs]
    try:
        for p, g in pairs:
            p.add_(g * (rho / (norm + 1e-12)))
        return loss()
    finally:
        for (p, _), copy in zip(pairs, copies, strict=True):
            p.copy_(copy)
