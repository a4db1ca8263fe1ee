"""What remembers weights from one pass to the next, and would hand a second pass those of the first."""

from __future__ import annotations

import torch
from torch.nn.utils import parametrize


def forget_weights() -> None:
    """Empty the caches of torch that are filled from weights, for these are about to move or have moved.

    `torch.autocast` keeps the weights that it has cast until its outermost context is left, and
    `parametrize.cached()` what parametrizations gave. Both hold for a step that is made within the context.

    Example:
        >>> layer, x = torch.nn.Linear(2, 2), torch.ones(1, 2)
        >>> with torch.autocast("cpu", dtype=torch.bfloat16):
        ...     before = layer(x)
        ...     with torch.no_grad():
        ...         layer.weight += 1
        ...     forget_weights()
        ...     bool((layer(x) > before).all())
        True
    """
    torch.clear_autocast_cache()
    parametrize._cache.clear()
