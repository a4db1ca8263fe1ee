"""The elementwise work of the LSQ Function by `torch.compile`: one pass over the memory instead of five.

The kernels are compiled when the first large tensor comes, once a process: some seconds, and less from the second
process on, for the compiler keeps its results on disk. They see every tensor as a vector or a matrix of changeable
size, so that no batch or image size compiles anew.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from qat_vsam.errors import MissingDependencyError, explain
from qat_vsam.quant.kernels import (
    EAGER,
    STRAIGHT_THROUGH,
    Kernels,
    Surrogate,
    along_axis_0,
    memory_order,
    origin,
    surrogate_factor,
)

# Below this many elements the calls themselves cost more than the passes that are saved.
WORTH_COMPILING = 2**18


def kernels_for(x: Tensor, compiled: bool | None) -> Kernels:
    """The kernels for a tensor: eager ones for False, fused ones for True.

    None means fused for `WORTH_COMPILING` elements and more, where a compiler is found that computes the same, else
    eager. Under `torch.compile` of a whole model they are those that it can fuse with what stands around them.

    Raises:
        MissingDependencyError: `compiled` is True, and no working compiler is found.
    """
    if torch.compiler.is_compiling():
        return TRACED
    if compiled is False:
        return EAGER
    if compiled is None and (x.numel() < WORTH_COMPILING or compiler_trouble() is not None):
        return EAGER
    return compiled_kernels()


@functools.cache
def compiler_trouble() -> str | None:
    """Why the fused kernels cannot be used here, None where they can."""
    try:
        compiled_kernels()
    except MissingDependencyError as error:
        return str(error)
    return None


@functools.cache
def compiled_kernels() -> Kernels:
    """The fused kernels, after a look that they compute what the eager ones do.

    Raises:
        MissingDependencyError: no working compiler is found.
    """
    kernels = Kernels(_forward, _backward)
    try:
        wrong = _differences(kernels)
    except Exception as error:  # inductor raises many kinds; all of them mean that it cannot be used here
        raise _no_compiler(str(error)) from error
    if wrong:
        raise _no_compiler(f"its {wrong} is not that of eager operations")
    return kernels


def _no_compiler(trouble: str) -> MissingDependencyError:
    expected = "a C++ compiler for torch.compile, and a torch whose compiler is right"
    return MissingDependencyError(explain("compiled", f"no working compiler ({trouble})", expected, "stay eager"))


def _differences(kernels: Kernels) -> str:
    """What differs from the eager kernels on small tensors, "" if nothing does."""
    x = torch.linspace(-2, 3, 96).reshape(4, 24)
    gradient = x.cos()
    for scale in (torch.tensor(0.3), torch.tensor([0.1, 0.2, 0.3, 0.4])):
        if not torch.equal(kernels.forward(x, scale, -8, 7)[0], EAGER.forward(x, scale, -8, 7)[0]):
            return "result"
        pairs = (k.backward(gradient, x, scale, -8, 7, STRAIGHT_THROUGH, True) for k in (kernels, EAGER))
        for fused, eager in zip(*pairs, strict=True):
            if not torch.allclose(fused, eager, rtol=1e-4, atol=1e-4):
                return "gradient"
    return ""


def _fused_forward(x: Tensor, scale: Tensor, q_min: float, q_max: float, start: float) -> tuple[Tensor, Tensor]:
    shift = q_min % 1
    q = torch.round(torch.clamp(x / scale, q_min, q_max) - shift) + shift
    return q * scale, (q - start).to(torch.int8)


def _fused_backward(
    gradient: Tensor,
    x: Tensor,
    scale: Tensor,
    q_min: float,
    q_max: float,
    surrogate: Surrogate,
    rounding_moves_step: bool,
) -> tuple[Tensor, Tensor]:
    gx, terms = _gradients(gradient, x, scale, q_min, q_max, surrogate, rounding_moves_step)
    return gx, terms.sum(-1)


def _gradients(
    gradient: Tensor,
    x: Tensor,
    scale: Tensor,
    q_min: float,
    q_max: float,
    surrogate: Surrogate,
    rounding_moves_step: bool,
) -> tuple[Tensor, Tensor]:
    """The gradient of x, and what the gradient of the scale is the sum of."""
    v, shift = x / scale, q_min % 1
    clipped = torch.clamp(v, q_min, q_max)
    inside = clipped == v
    gx = torch.where(inside, gradient, 0.0)
    q = torch.round(clipped - shift) + shift
    terms = gradient * (q - torch.where(inside, v if rounding_moves_step else q, 0.0))
    if surrogate != STRAIGHT_THROUGH:
        gx = gx * surrogate_factor(gradient, v, q_min, surrogate)
    return gx, terms


def _rows(x: Tensor, scale: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """x as a vector (one scale) or as a matrix with a row for each scale, in memory order, and the way back.

    The fused kernels see only these two shapes: no image size, batch size or memory format compiles anew.
    """
    order = memory_order(x) if scale.dim() == 0 else [0, *memory_order(x, start=1)]
    permuted = x.permute(order)
    inverse = [order.index(axis) for axis in range(x.dim())]
    rows = permuted.reshape(-1) if scale.dim() == 0 else permuted.reshape(x.shape[0], -1)
    return rows, lambda result: result.view(permuted.shape).permute(inverse)


def _column(scale: Tensor) -> Tensor:
    return scale if scale.dim() == 0 else scale[:, None]


@functools.cache
def _compiled(function: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    return torch.compile(function, dynamic=True)


def _forward(x: Tensor, scale: Tensor, q_min: float, q_max: float) -> tuple[Tensor, Tensor]:
    rows, restore = _rows(x, scale)
    start = origin(q_min, q_max)
    x_hat, places = _compiled(_fused_forward)(rows, _column(scale), q_min, q_max, start)
    return restore(x_hat), restore(places)


def _backward(
    gradient: Tensor,
    x: Tensor,
    scale: Tensor,
    q_min: float,
    q_max: float,
    surrogate: Surrogate = STRAIGHT_THROUGH,
    rounding_moves_step: bool = True,
) -> tuple[Tensor, Tensor]:
    rows, restore = _rows(x, scale)
    gradient_rows, _ = _rows(gradient, scale)
    fused = _compiled(_fused_backward)
    gx, gs = fused(gradient_rows, rows, _column(scale), q_min, q_max, surrogate, rounding_moves_step)
    return restore(gx), gs


def _traced_forward(x: Tensor, scale: Tensor, q_min: float, q_max: float) -> tuple[Tensor, None]:
    q, _ = _fused_forward(x, along_axis_0(scale, x), q_min, q_max, 0)
    return q, None


def _traced_backward(
    gradient: Tensor,
    x: Tensor,
    scale: Tensor,
    q_min: float,
    q_max: float,
    surrogate: Surrogate = STRAIGHT_THROUGH,
    rounding_moves_step: bool = True,
) -> tuple[Tensor, Tensor]:
    gx, terms = _gradients(gradient, x, along_axis_0(scale, x), q_min, q_max, surrogate, rounding_moves_step)
    return gx, terms.sum() if scale.dim() == 0 else terms.flatten(1).sum(1)


# The same work in operations without memory orders and without writing in place, which a compiler of a model fuses.
TRACED = Kernels(_traced_forward, _traced_backward)
