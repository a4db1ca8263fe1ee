"""The elementwise work of the LSQ Function, in two forms: eager in-place operations, and `torch.compile`.

Both take and return plain tensors, float32 or float64, without a graph. `scale` is positive, of shape () for
the whole tensor or (C,) for the slices of axis 0.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from qat_vsam.errors import MissingDependencyError, explain


class Kernels(NamedTuple):
    """One form of the work.

    Args:
        forward: (x, scale, q_min, q_max) -> x_hat.
        backward: (gradient, x, x_hat or None, scale, q_min, q_max) -> (gradient of x, gradient of the scale).
        needs_x_hat: whether `backward` is faster when it is given x_hat.
    """

    forward: Callable[[Tensor, Tensor, int, int], Tensor]
    backward: Callable[[Tensor, Tensor, Tensor | None, Tensor, int, int], tuple[Tensor, Tensor]]
    needs_x_hat: bool


def along_axis_0(scale: Tensor, x: Tensor) -> Tensor:
    """The scale in a shape that broadcasts against x."""
    return scale if scale.dim() == 0 else scale.reshape(-1, *[1] * (x.dim() - 1))


def _eager_forward(x: Tensor, scale: Tensor, q_min: int, q_max: int) -> Tensor:
    s = along_axis_0(scale, x)
    return (x / s).clamp_(q_min, q_max).round_().mul_(s)


def _eager_backward(
    gradient: Tensor, x: Tensor, x_hat: Tensor | None, scale: Tensor, q_min: int, q_max: int
) -> tuple[Tensor, Tensor]:
    if x_hat is None:
        x_hat = _eager_forward(x, scale, q_min, q_max)
    v = x / along_axis_0(scale, x)
    # A float mask made in place is several times faster on CPU than a boolean one.
    gx = v.clamp(q_min, q_max).eq_(v).mul_(gradient)
    if scale.dim() == 0:
        order = _memory_order(x)
        g_flat, gx_flat, x_flat, x_hat_flat = (t.permute(order).reshape(-1) for t in (gradient, gx, x, x_hat))
        gs = torch.dot(g_flat, x_hat_flat) - torch.dot(gx_flat, x_flat)
    else:
        products = (gradient * x_hat).addcmul_(gx, x, value=-1)
        gs = products.sum(list(range(1, x.dim()))) if x.dim() > 1 else products
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


def _fused_forward(x: Tensor, scale: Tensor, q_min: int, q_max: int) -> Tensor:
    return torch.round(torch.clamp(x / scale, q_min, q_max)) * scale


def _fused_backward(gradient: Tensor, x: Tensor, scale: Tensor, q_min: int, q_max: int) -> tuple[Tensor, Tensor]:
    v = x / scale
    clipped = torch.clamp(v, q_min, q_max)
    inside = clipped == v
    gx = torch.where(inside, gradient, 0.0)
    gs = (gradient * (torch.round(clipped) - torch.where(inside, v, 0.0))).sum(-1)
    return gx, gs


@functools.cache
def compiled_kernels() -> Kernels:
    """The fused kernels: compiled on first use, at most once for vectors and once for matrices a dtype.

    Raises:
        MissingDependencyError: no working compiler is found.
    """
    fused_forward = torch.compile(_fused_forward, dynamic=True)
    fused_backward = torch.compile(_fused_backward, dynamic=True)

    def forward(x: Tensor, scale: Tensor, q_min: int, q_max: int) -> Tensor:
        rows, restore = _rows(x, scale)
        return restore(fused_forward(rows, scale if scale.dim() == 0 else scale[:, None], q_min, q_max))

    def backward(
        gradient: Tensor, x: Tensor, x_hat: Tensor | None, scale: Tensor, q_min: int, q_max: int
    ) -> tuple[Tensor, Tensor]:
        rows, restore = _rows(x, scale)
        gradient_rows, _ = _rows(gradient, scale)
        column = scale if scale.dim() == 0 else scale[:, None]
        gx, gs = fused_backward(gradient_rows, rows, column, q_min, q_max)
        return restore(gx), gs

    try:
        forward(torch.ones(8), torch.tensor(0.5), 0, 3)
    except Exception as error:  # inductor raises many kinds; all of them mean that it cannot be used here
        raise MissingDependencyError(
            explain("compiled", f"no working compiler ({error})", "a C++ compiler for torch.compile", "stay eager")
        ) from error
    return Kernels(forward, backward, needs_x_hat=False)
