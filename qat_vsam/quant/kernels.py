"""The elementwise work of the LSQ Function, in two forms: eager in-place operations, and `torch.compile`.

Both take and return plain tensors, float32 or float64, without a graph. `scale` is positive, of shape () for
the whole tensor or (C,) for the slices of axis 0. The levels are q_min, q_min + 1, ..., q_max, in units of the
scale: integers, or all of them halves of odd numbers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from qat_vsam.errors import MissingDependencyError, explain

# Name, and delta of "ewgs" or A of "stable".
Surrogate: TypeAlias = tuple[str, float]
STRAIGHT_THROUGH: Surrogate = ("ste", 0.0)


class Kernels(NamedTuple):
    """One form of the work.

    Args:
        forward: (x, scale, q_min, q_max) -> x_hat.
        backward: (gradient, x, x_hat or None, scale, q_min, q_max, surrogate, rounding_moves_step) -> (gradient of
            x, gradient of the scale).
        needs_x_hat: whether `backward` is faster when it is given x_hat.
    """

    forward: Callable[[Tensor, Tensor, float, float], Tensor]
    backward: Callable[[Tensor, Tensor, Tensor | None, Tensor, float, float, Surrogate, bool], tuple[Tensor, Tensor]]
    needs_x_hat: bool


def surrogate_factor(gradient: Tensor, v: Tensor, q_min: float, surrogate: Surrogate) -> Tensor:
    """What the straight-through gradient at v = x / s is multiplied by; d is the way from v to its level.

        ewgs     1 + delta sign(gradient) d
        stable   (1 - c cos(pi d)) / (1 + c cos(pi d)),   c = sqrt(2) pi A

    Reference: arXiv 2104.00903 (ewgs, there in units of the range), 2601.19320 (stable, of order 0).
    """
    name, strength = surrogate
    shifted = v - q_min % 1
    d = shifted - shifted.round()
    if name == "ewgs":
        return 1 + strength * gradient.sign() * d
    wave = math.sqrt(2) * math.pi * strength * torch.cos(math.pi * d)
    return (1 - wave) / (1 + wave)


def along_axis_0(scale: Tensor, x: Tensor) -> Tensor:
    """The scale in a shape that broadcasts against x."""
    return scale if scale.dim() == 0 else scale.reshape(-1, *[1] * (x.dim() - 1))


def _eager_forward(x: Tensor, scale: Tensor, q_min: float, q_max: float) -> Tensor:
    s = along_axis_0(scale, x)
    v, shift = (x / s).clamp_(q_min, q_max), q_min % 1
    return v.sub_(shift).round_().add_(shift).mul_(s) if shift else v.round_().mul_(s)


def _eager_backward(
    gradient: Tensor,
    x: Tensor,
    x_hat: Tensor | None,
    scale: Tensor,
    q_min: float,
    q_max: float,
    surrogate: Surrogate = STRAIGHT_THROUGH,
    rounding_moves_step: bool = True,
) -> tuple[Tensor, Tensor]:
    if x_hat is None:
        x_hat = _eager_forward(x, scale, q_min, q_max)
    v = x / along_axis_0(scale, x)
    # A float mask made in place is several times faster on CPU than a boolean one.
    gx = v.clamp(q_min, q_max).eq_(v).mul_(gradient)
    inner = x if rounding_moves_step else x_hat
    if scale.dim() == 0:
        order = _memory_order(x)
        g_flat, gx_flat, inner_flat, x_hat_flat = (t.permute(order).reshape(-1) for t in (gradient, gx, inner, x_hat))
        gs = torch.dot(g_flat, x_hat_flat) - torch.dot(gx_flat, inner_flat)
    else:
        products = (gradient * x_hat).addcmul_(gx, inner, value=-1)
        gs = products.sum(list(range(1, x.dim()))) if x.dim() > 1 else products
    if surrogate != STRAIGHT_THROUGH:
        gx = gx * surrogate_factor(gradient, v, q_min, surrogate)
    return gx, gs / scale


EAGER = Kernels(_eager_forward, _eager_backward, needs_x_hat=True)


def _rows(x: Tensor, scale: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """x as a vector (one scale) or as a matrix with a row for each scale, in memory order, and the way back.

    The fused kernels see only these two shapes: no image size, batch size or memory format compiles anew.
    """
    order = _memory_order(x) if scale.dim() == 0 else [0, *_memory_order(x, start=1)]
    permuted = x.permute(order)
    inverse = [order.index(axis) for axis in range(x.dim())]
    rows = permuted.reshape(-1) if scale.dim() == 0 else permuted.reshape(x.shape[0], -1)
    return rows, lambda result: result.view(permuted.shape).permute(inverse)


def _memory_order(x: Tensor, start: int = 0) -> list[int]:
    """The axes from the largest stride to the smallest: flattened so, every dense memory format is a view."""
    return sorted(range(start, x.dim()), key=x.stride, reverse=True)


def _fused_forward(x: Tensor, scale: Tensor, q_min: float, q_max: float) -> Tensor:
    shift = q_min % 1
    return (torch.round(torch.clamp(x / scale, q_min, q_max) - shift) + shift) * scale


def _fused_backward(
    gradient: Tensor,
    x: Tensor,
    scale: Tensor,
    q_min: float,
    q_max: float,
    surrogate: Surrogate,
    rounding_moves_step: bool,
) -> tuple[Tensor, Tensor]:
    v, shift = x / scale, q_min % 1
    clipped = torch.clamp(v, q_min, q_max)
    inside = clipped == v
    gx = torch.where(inside, gradient, 0.0)
    q = torch.round(clipped - shift) + shift
    gs = (gradient * (q - torch.where(inside, v if rounding_moves_step else q, 0.0))).sum(-1)
    if surrogate != STRAIGHT_THROUGH:
        gx = gx * surrogate_factor(gradient, v, q_min, surrogate)
    return gx, gs


@functools.cache
def compiled_kernels() -> Kernels:
    """The fused kernels: compiled on first use, at most once for vectors and once for matrices a dtype.

    Raises:
        MissingDependencyError: no working compiler is found.
    """
    fused_forward = torch.compile(_fused_forward, dynamic=True)
    fused_backward = torch.compile(_fused_backward, dynamic=True)

    def forward(x: Tensor, scale: Tensor, q_min: float, q_max: float) -> Tensor:
        rows, restore = _rows(x, scale)
        return restore(fused_forward(rows, scale if scale.dim() == 0 else scale[:, None], q_min, q_max))

    def backward(
        gradient: Tensor,
        x: Tensor,
        x_hat: Tensor | None,
        scale: Tensor,
        q_min: float,
        q_max: float,
        surrogate: Surrogate = STRAIGHT_THROUGH,
        rounding_moves_step: bool = True,
    ) -> tuple[Tensor, Tensor]:
        rows, restore = _rows(x, scale)
        gradient_rows, _ = _rows(gradient, scale)
        column = scale if scale.dim() == 0 else scale[:, None]
        gx, gs = fused_backward(gradient_rows, rows, column, q_min, q_max, surrogate, rounding_moves_step)
        return restore(gx), gs

    try:
        forward(torch.ones(8), torch.tensor(0.5), 0, 3)
    except Exception as error:  # inductor raises many kinds; all of them mean that it cannot be used here
        raise MissingDependencyError(
            explain("compiled", f"no working compiler ({error})", "a C++ compiler for torch.compile", "stay eager")
        ) from error
    return Kernels(forward, backward, needs_x_hat=False)
