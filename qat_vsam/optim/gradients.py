"""Arithmetic on sets of gradients, by `torch._foreach`: few launches, and nothing leaves the device.

A set of gradients maps a tensor to its gradient. A tensor without gradient is absent, which is not the same
as zero: the base optimizer skips it. Where one operand of a sum lacks a tensor that the other has, it
counts as zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from qat_vsam.errors import InputError, explain
from qat_vsam.optim.distributed import is_sharded, whole

Gradients: TypeAlias = dict[Tensor, Tensor]
_HALF = (torch.float16, torch.bfloat16)


def take(tensors: Iterable[Tensor]) -> Gradients:
    """Move the gradients out of `.grad`, which is None afterwards: the next backward cannot write into them.

    Raises:
        InputError: A gradient is sparse.
    """
    gradients: Gradients = {}
    for tensor in tensors:
        gradient = tensor.grad
        if gradient is None:
            continue
        if gradient.is_sparse:
            raise InputError(
                explain(
                    "gradient",
                    f"a sparse gradient for a tensor of shape {tuple(tensor.shape)}",
                    "dense gradients",
                    "build the embedding with sparse=False",
                )
            )
        # DistributedDataParallel may hand out views of a bucket, which it fills again in the next backward pass.
        borrowed = gradient._is_view() and not is_sharded(gradient)
        gradients[tensor] = gradient.detach().clone() if borrowed else gradient.detach()
        tensor.grad = None
    return gradients


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """The L2 norm over all tensors together, as a 0-dim tensor on the device of the first; at least float32.

    Example:
        >>> float(global_norm([torch.tensor([3.0]), torch.tensor([[4.0]])]))
        5.0
    """
    if not tensors:
        return torch.zeros(())
    half = [tensor for tensor in tensors if tensor.dtype in _HALF]
    full = [tensor for tensor in tensors if tensor.dtype not in _HALF]
    norms = list(torch._foreach_norm(full)) if full else []
    if half:
        norms += torch._foreach_norm(half, 2, dtype=torch.float32)
    norm: Tensor = torch.linalg.vector_norm(torch.stack([norm.to(tensors[0].device) for norm in norms]))
    return whole(norm)


def dot(first: Gradients, second: Gradients) -> Tensor:
    """The scalar product over the tensors that both have, as a 0-dim tensor; at least float32.

    Example:
        >>> w = torch.zeros(2)
        >>> dot({w: torch.tensor([1.0, 2.0])}, {w: torch.tensor([3.0, 4.0])})
        tensor(11.)
    """
    shared = [tensor for tensor in first if tensor in second]
    if not shared:
        return torch.zeros(())
    products = torch._foreach_mul([first[t] for t in shared], [second[t] for t in shared])
    sums = [p.sum(dtype=torch.float32 if p.dtype in _HALF else None) for p in products]
    return whole(torch.stack([value.to(sums[0].device) for value in sums]).sum())


def difference(minuend: Gradients, subtrahend: Gradients) -> Gradients:
    """minuend - subtrahend, in new tensors."""
    keys, left, right = _aligned(minuend, subtrahend)
    return dict(zip(keys, torch._foreach_sub(left, right), strict=True)) if keys else {}


def mixture(first: Gradients, second: Gradients, share: float | Tensor) -> Gradients:
    """share * first + (1 - share) * second, written into the tensors of `second`, which is used up.

    Example:
        >>> w = torch.zeros(1)
        >>> mixture({w: torch.tensor([4.0])}, {w: torch.tensor([8.0])}, 0.25)[w]
        tensor([7.])
    """
    keys, left, right = _aligned(first, second)
    if not keys:
        return {}
    if isinstance(share, Tensor):
        torch._foreach_mul_(right, 1 - share)
        torch._foreach_add_(right, torch._foreach_mul(left, share))
    else:
        torch._foreach_lerp_(right, left, share)
    return dict(zip(keys, right, strict=True))


def total(first: Gradients, second: Gradients, alpha: float = 1.0) -> Gradients:
    """first + alpha * second, written into the tensors of `first`, which is used up."""
    keys, left, right = _aligned(first, second)
    if keys:
        torch._foreach_add_(left, right, alpha=alpha)
    return dict(zip(keys, left, strict=True))


def _aligned(first: Gradients, second: Gradients) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    if first.keys() == second.keys():
        keys = list(first)
        return keys, list(first.values()), [second[key] for key in keys]
    keys = list({**first, **second})
    left = [first[key] if key in first else torch.zeros_like(second[key]) for key in keys]
    right = [second[key] if key in second else torch.zeros_like(first[key]) for key in keys]
    return keys, left, right
