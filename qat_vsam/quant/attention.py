"""Attention whose projections are layers that are called, so that they can be quantized as any other.

`nn.MultiheadAttention` multiplies by its weights itself. `CalledAttention` computes the same by calling a linear layer
`in_proj` for queries, keys and values together, and `out_proj`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from qat_vsam.errors import InputError, explain
from qat_vsam.quant.layers import QuantLayer, take_over
from qat_vsam.quant.replace import replace_modules


class CalledAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` with a child `in_proj`, an `nn.Linear` of 3 E outputs, beside `out_proj`.

    The Parameter objects are those of the attention it was made from; in its state_dict `in_proj_weight` and
    `in_proj_bias` are called `in_proj.weight` and `in_proj.bias`, and it loads either. While both projections are in
    float, or have their quantizers off, PyTorch's own forward runs, bit for bit, its fast path included.

    Example:
        >>> attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
        >>> x = torch.randn(2, 5, 8)
        >>> expected, _ = attention(x, x, x)
        >>> torch.equal(CalledAttention.from_float(attention)(x, x, x)[0], expected)
        True
    """

    in_proj: nn.Module

    @classmethod
    def from_float(cls, module: nn.MultiheadAttention) -> CalledAttention:
        """The same attention with its projections as layers; takes over hooks, flags and attributes."""
        attention = take_over(module, cls)
        weight, bias = (attention._parameters.pop(name) for name in ("in_proj_weight", "in_proj_bias"))
        in_proj: Any = nn.Linear(1, 1, bias=bias is not None, device="meta").train(module.training)
        in_proj.out_features, in_proj.in_features = 3 * module.embed_dim, module.embed_dim
        in_proj.weight, in_proj.bias = weight, bias
        attention.in_proj = in_proj
        attention._modules["out_proj"] = take_over(module.out_proj, nn.Linear)
        return attention

    # nn.MultiheadAttention reads these two in its own forward.
    @property
    def in_proj_weight(self) -> Any:  # type: ignore[override]
        """The weight of `in_proj`."""
        return self.in_proj.weight

    @property
    def in_proj_bias(self) -> Any:  # type: ignore[override]
        """The bias of `in_proj`."""
        return self.in_proj.bias

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention.forward`.

        Raises:
            InputError: `is_causal` without the mask that it is a hint about.
        """
        if is_causal and attn_mask is None:
            raise InputError(
                explain("is_causal", "True without attn_mask", "a mask that it describes", "pass attn_mask")
            )
        if all(_is_float(layer) for layer in (self.in_proj, self.out_proj)):
            return super().forward(
                query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            )
        same, batched = query is key and key is value, query.dim() == 3
        axis = 0 if not batched else 1 if not self.batch_first else None
        if axis is not None:  # (L, E) or (L, N, E) to (N, L, E)
            moved = {id(x): x.unsqueeze(0) if axis == 0 else x.transpose(0, 1) for x in (query, key, value)}
            query, key, value = (moved[id(x)] for x in (query, key, value))
        q, k, v = (self._heads(x) for x in self._projected(query, key, value, same))
        mask = self._mask(q, k, key_padding_mask, attn_mask, batched)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) / math.sqrt(self.head_dim)
            weights = F.dropout(torch.softmax(scores if mask is None else scores + mask, -1), dropout)
            attended = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            attended = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        y: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        if axis is not None:
            y = y.squeeze(0) if axis == 0 else y.transpose(0, 1)
        return y, weights if weights is None or batched else weights.squeeze(0)

    def _projected(self, query: Tensor, key: Tensor, value: Tensor, same: bool) -> Iterator[Tensor]:
        if same:
            yield from self.in_proj(query).chunk(3, -1)
            return
        # One layer for all three: where they come from different tensors, a third of each result is used.
        for index, x in enumerate((query, key, value)):
            yield self.in_proj(x).chunk(3, -1)[index]

    def _heads(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)  # (N, heads, L, E / heads)
        return heads

    def _mask(
        self, q: Tensor, k: Tensor, padding: Tensor | None, attention: Tensor | None, batched: bool
    ) -> Tensor | None:
        mask = None
        if attention is not None:
            mask = _additive(attention, q.dtype)
            if mask.dim() == 3:
                mask = mask.view(q.shape[0], -1, q.shape[2], k.shape[2])
        if padding is not None:
            padding = _additive(padding if batched else padding.unsqueeze(0), q.dtype)[:, None, None, :]
            mask = padding if mask is None else mask + padding
        return mask

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in ("weight", "bias"):
            if f"{prefix}in_proj_{name}" in state_dict:
                state_dict[f"{prefix}in_proj.{name}"] = state_dict.pop(f"{prefix}in_proj_{name}")
        super()._load_from_state_dict(state_dict, prefix, *rest)


def cannot_be_called(module: nn.Module) -> str:
    """Why an attention cannot become a `CalledAttention`; "" if it can."""
    if type(module) is not nn.MultiheadAttention:
        return "a subclass of MultiheadAttention with a forward of its own"
    if not module._qkv_same_embed_dim:
        return "attention whose keys or values have a width of their own"
    if module.bias_k is not None or module.add_zero_attn:
        return "attention that appends to its keys and values"
    return ""


def call_projections(model: nn.Module) -> dict[nn.Module, nn.Module]:
    """Put a `CalledAttention` in the place of every attention that can become one, in place, but for the root.

    Returns:
        What was put in the place of what; `replace_modules` undoes it.
    """
    # an encoder layer reads the weights of its attention itself, and PyTorch's own must stay there
    read = {layer.self_attn for layer in model.modules() if isinstance(layer, nn.TransformerEncoderLayer)}
    made: dict[nn.Module, nn.Module] = {
        module: CalledAttention.from_float(module)
        for module in model.modules()
        if isinstance(module, nn.MultiheadAttention) and module not in read and not cannot_be_called(module)
    }
    replace_modules(model, made)
    return {called: module for module, called in made.items()}


def _is_float(layer: nn.Module) -> bool:
    """Whether nothing would be lost if the layer were not called: neither quantization nor somebody who watches."""
    if type(layer) is not nn.Linear and not isinstance(layer, QuantLayer):
        return False
    quantizers = (getattr(layer, name, None) for name in ("weight_quantizer", "input_quantizer"))
    parts = [layer, *(quantizer for quantizer in quantizers if quantizer is not None)]
    watched = any(part._forward_pre_hooks or part._forward_hooks for part in parts)
    return not watched and not any(getattr(part, "enabled", False) for part in parts)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -math.inf)
