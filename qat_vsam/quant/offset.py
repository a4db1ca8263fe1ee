"""The maths of an asymmetric grid with learned step size and offset."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from qat_vsam.quant.functional import wide
from qat_vsam.quant.kernels import worth_keeping
from qat_vsam.quant.saved_codes import remember


def integer_zero_point(scale: Tensor, offset: Tensor, q_max: float) -> Tensor:
    """round(clip(-beta / s, 0, Qp)): the code of zero, an integer in floating point.

    Example:
        >>> integer_zero_point(torch.tensor(0.5), torch.tensor(-1.2), 15)
        tensor(2.)
    """
    return (-offset.detach() / scale.detach()).clamp(0, q_max).round()


def lsq_plus_quantize(x: Tensor, scale: Tensor, offset: Tensor, q_max: float, gradient_factor: float = 1.0) -> Tensor:
    """x_hat = s (q - z), q = clip(round(x / s) + z, 0, Qp), z = `integer_zero_point`, with the gradients of LSQ+.

        d x_hat / d x = 1 inside the range, 0 outside
        d x_hat / d s = round(x / s) - x / s inside, 0 below, Qp above;   d x_hat / d beta = 0 inside, 1 outside

    Args:
        x: tensor of any shape.
        scale: s, positive, shape ().
        offset: beta, shape ().
        q_max: Qp, the largest code.
        gradient_factor: scales the gradients of s and beta.

    Returns:
        Tensor of x's shape, dtype and memory format.

    Example:
        >>> x = torch.tensor([-2.0, -0.6, 0.2, 9.0], requires_grad=True)
        >>> beta = torch.tensor(-1.2, requires_grad=True)
        >>> x_hat = lsq_plus_quantize(x, torch.tensor(0.5), beta, 15)
        >>> x_hat.sum().backward()
        >>> x_hat.detach(), x.grad, beta.grad
        (tensor([-1.0000, -0.5000,  0.0000,  6.5000]), tensor([0., 1., 1., 0.]), tensor(2.))

    Reference: arXiv 2004.09576, there with an offset that is not rounded to the grid.
    """
    x_hat: Tensor
    x_hat, *codes = _LearnedOffset.apply(x, scale, offset, q_max, gradient_factor)
    if codes:
        places, origin = codes
        remember(x_hat, places, origin, scale.detach())
    return x_hat


class _LearnedOffset(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, offset: Tensor, q_max: float, gradient_factor: float
    ) -> tuple[Tensor, ...]:
        zero_point = integer_zero_point(scale, offset, q_max)
        ctx.constants = (q_max, gradient_factor)
        q = (wide(x) / scale).round_().clamp_(-zero_point, q_max - zero_point)
        ctx.save_for_backward(x, scale, zero_point)
        if not worth_keeping(q):
            return (q.mul_(scale).to(x.dtype),)
        origin = (128.0 if q_max > 127 else 0.0) - zero_point
        places = (q - origin).to(torch.int8)
        ctx.mark_non_differentiable(places, origin)
        ctx.set_materialize_grads(False)
        return q.mul_(scale).to(x.dtype), places, origin

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, gradient: Tensor, *of_codes: None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, scale, zero_point = ctx.saved_tensors
        q_max, factor = ctx.constants
        v, g = wide(x) / scale, wide(gradient)
        above = v > q_max - zero_point
        outside = above | (v < -zero_point)
        towards_s = torch.where(outside, above * q_max, v.round() - v)
        gs, g_offset = (g * towards_s).sum() * factor, (g * outside).sum() * factor
        return torch.where(outside, 0.0, g).to(x.dtype), gs.to(scale.dtype), g_offset.to(scale.dtype), None, None
