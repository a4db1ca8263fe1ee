"""A convolution that keeps codes of one byte for its backward pass where it would keep values of four.

Autograd keeps the two arguments of a convolution or a linear map. Where one of them is x_hat = s q, the codes tell it
to the last bit, in a quarter of the memory: then a step keeps, beside the codes, what the float step keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qat_vsam.quant.kernels import along_axis_0


class _Codes(NamedTuple):
    """What x_hat is made of: (places + origin) scale, in a dtype."""

    places: Tensor
    origin: float | Tensor
    scale: Tensor
    dtype: torch.dtype

    def values(self) -> Tensor:
        q = self.places.to(self.scale.dtype)
        if isinstance(self.origin, Tensor) or self.origin:
            q += self.origin
        return q.mul_(along_axis_0(self.scale, q)).to(self.dtype)


class _View(NamedTuple):
    """A tensor that looks at the storage of an x_hat."""

    codes: _Codes
    size: torch.Size
    stride: tuple[int, ...]
    offset: int | torch.SymInt


def remember(x_hat: Tensor, places: Tensor, origin: float | Tensor, scale: Tensor) -> None:
    """Note on x_hat what it is made of, for `keeping_codes`; nothing where no graph is built.

    Args:
        x_hat: dense, of the places' shape and strides.
        places: q - origin, int8; see `kernels.origin`.
        origin: of the grid; shape () if a tensor.
        scale: positive, shape () or (x_hat.shape[0],).
    """
    if not torch.is_grad_enabled():
        return
    if x_hat.stride() == places.stride() and x_hat.storage_offset() == places.storage_offset() == 0:
        x_hat.codes = _Codes(places, origin, scale, x_hat.dtype)  # type: ignore[attr-defined]


def keeping_codes(*tensors: Tensor) -> AbstractContextManager[Any]:
    """Context in which autograd keeps the codes of these tensors instead of their values, as far as they have any.

    Example:
        >>> from qat_vsam.quant import lsq_quantize
        >>> x = torch.randn(2**17, 3, requires_grad=True)
        >>> weight = torch.randn(2, 3, requires_grad=True)
        >>> x_hat = lsq_quantize(x, torch.tensor(0.5), -8, 7)
        >>> with keeping_codes(x_hat):
        ...     y = torch.nn.functional.linear(x_hat, weight)
        >>> y.sum().backward()
        >>> torch.allclose(weight.grad[0], x_hat.sum(0))
        True
    """
    if torch.compiler.is_compiling():
        return nullcontext()
    known = {t.untyped_storage().data_ptr(): t.codes for t in tensors if hasattr(t, "codes")}
    return torch.autograd.graph.saved_tensors_hooks(_pack_with(known), _unpack) if known else nullcontext()


def _pack_with(known: dict[int, _Codes]) -> Callable[[Tensor], Any]:
    def pack(tensor: Tensor) -> Any:
        codes = known.get(tensor.untyped_storage().data_ptr()) if tensor.layout == torch.strided else None
        if codes is None or tensor.dtype != codes.dtype:
            return tensor
        return _View(codes, tensor.size(), tensor.stride(), tensor.storage_offset())

    return pack


def _unpack(kept: Any) -> Tensor:
    if isinstance(kept, _View):
        return kept.codes.values().as_strided(kept.size, kept.stride, kept.offset)
    tensor: Tensor = kept
    return tensor
