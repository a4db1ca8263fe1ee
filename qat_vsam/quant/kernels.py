"""The elementwise work of the LSQ Function, by eager operations in place; `compiled` has the same work fused.

Both take and return plain tensors, float32 or float64, without a graph. `scale` is positive, of shape () for
the whole tensor or (C,) for the slices of axis 0. The levels are q_min, q_min + 1, ..., q_max, in units of the
scale: integers, or all of them halves of odd numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

# Name, and delta of "ewgs" or A of "stable".
Surrogate: TypeAlias = tuple[str, float]
STRAIGHT_THROUGH: Surrogate = ("ste", 0.0)
# Below this many elements, keeping codes for the backward pass costs time and saves next to no memory.
WORTH_KEEPING = 2**18


class Kernels(NamedTuple):
    """One form of the work.

    Args:
        forward: (x, scale, q_min, q_max) -> (x_hat, places); the place of a level q is q - `origin`, as int8;
            None if it is not `worth_keeping`.
        backward: (gradient, x, scale, q_min, q_max, surrogate, rounding_moves_step) -> (gradient of x, gradient of
            the scale).
    """

    forward: Callable[[Tensor, Tensor, float, float], tuple[Tensor, Tensor | None]]
    backward: Callable[[Tensor, Tensor, Tensor, float, float, Surrogate, bool], tuple[Tensor, Tensor]]


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


def origin(q_min: float, q_max: float) -> float:
    """What is taken from the levels of a grid so that they are integers within int8, which converts fastest.

    Example:
        >>> origin(-8, 7), origin(-1.5, 1.5), origin(0, 255)
        (0, 0.5, 128)
    """
    return q_min % 1 + (128 if q_max > 127 else 0)


def worth_keeping(q: Tensor) -> bool:
    """Whether the places of these levels are kept for the operation behind, see `saved_codes`.

    Never under `torch.compile`, which decides itself what is kept and what is computed again.
    """
    return not torch.compiler.is_compiling() and q.numel() >= WORTH_KEEPING


def _eager_forward(x: Tensor, scale: Tensor, q_min: float, q_max: float) -> tuple[Tensor, Tensor | None]:
    s = along_axis_0(scale, x)
    v, shift = (x / s).clamp_(q_min, q_max), q_min % 1
    q = v.sub_(shift).round_().add_(shift) if shift else v.round_()
    start = origin(q_min, q_max)
    places = (q - start if start else q).to(torch.int8) if worth_keeping(q) else None
    return q.mul_(s), places


def _eager_backward(
    gradient: Tensor,
    x: Tensor,
    scale: Tensor,
    q_min: float,
    q_max: float,
    surrogate: Surrogate = STRAIGHT_THROUGH,
    rounding_moves_step: bool = True,
) -> tuple[Tensor, Tensor]:
    v, shift = x / along_axis_0(scale, x), q_min % 1
    clipped = v.clamp(q_min, q_max)
    # A float mask made in place is several times faster on CPU than a boolean one.
    inside = torch.eq(clipped, v, out=torch.empty_like(v))
    q = clipped.sub_(shift).round_().add_(shift) if shift else clipped.round_()
    # The difference first, then the sum: two sums that nearly cancel would lose digits of float32.
    towards_s = q.addcmul_(inside, v if rounding_moves_step else q, value=-1)
    gx = inside.mul_(gradient)
    if scale.dim() == 0:
        order = memory_order(x)
        gs = torch.dot(gradient.permute(order).reshape(-1), towards_s.permute(order).reshape(-1))
    else:
        products = towards_s.mul_(gradient)
        gs = products.sum(list(range(1, x.dim()))) if x.dim() > 1 else products
    if surrogate != STRAIGHT_THROUGH:
        gx = gx * surrogate_factor(gradient, v, q_min, surrogate)
    return gx, gs


EAGER = Kernels(_eager_forward, _eager_backward)


def memory_order(x: Tensor, start: int = 0) -> list[int]:
    """The axes from the largest stride to the smallest: flattened so, every dense memory format is a view."""
    return sorted(range(start, x.dim()), key=x.stride, reverse=True)
