"""Dropouts in evaluation mode, seen before they vanish: the dispatcher is told nothing of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.overrides import TorchFunctionMode

_DROPOUTS = {
    *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout),
    *(torch.dropout, torch.feature_dropout, torch.alpha_dropout, torch.feature_alpha_dropout),
}


class AtDropouts(TorchFunctionMode):
    """Within it, a dropout that hands its input on gives `mark(input)` instead.

    Example:
        >>> with AtDropouts(lambda x: x + 1):
        ...     torch.nn.Dropout().eval()(torch.zeros(2))
        tensor([1., 1.])
    """

    def __init__(self, mark: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._mark = mark

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result: Any = func(*args, **(kwargs or {}))
        x = args[0] if args else (kwargs or {}).get("input")
        return self._mark(result) if func in _DROPOUTS and isinstance(x, Tensor) and result is x else result
