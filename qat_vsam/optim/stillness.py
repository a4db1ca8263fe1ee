"""What must not move while a network is evaluated a second time: statistics, observers, random masks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


@contextmanager
def standing_still(model: nn.Module | None) -> Iterator[None]:
    """Within the context a forward pass changes no state of `model`.

    - Batch and instance norms in train mode get `track_running_stats=False`: they still normalise by the
      batch, but leave mean, variance and counter alone. (Momentum 0 would still count the batch, and would
      let an infinite activation poison the running mean.)
    - Modules with a Python attribute `updates_state` get it set to False.

    Both are set back on leaving, also when the forward pass raises. Without a model nothing is done.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> with standing_still(norm):
        ...     _ = norm(torch.randn(4, 2))
        >>> int(norm.num_batches_tracked)
        0
    """
    norms: list[_NormBase] = []
    switched: list[nn.Module] = []
    try:
        for module in model.modules() if model is not None else ():
            if isinstance(module, _NormBase) and module.training and module.track_running_stats:
                norms.append(module)
                module.track_running_stats = False
            if getattr(module, "updates_state", False) is True:
                switched.append(module)
                module.updates_state = False  # type: ignore[assignment]
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
        for module in switched:
            module.updates_state = True  # type: ignore[assignment]


class RandomState:
    """The state of the CPU generator and of those of the CUDA devices in use, to draw the same numbers again.

    Args:
        tensors: Tensors whose devices count as in use.

    Example:
        >>> state = RandomState([torch.zeros(1)])
        >>> first = torch.rand(3)
        >>> with state.replayed():
        ...     second = torch.rand(3)
        >>> torch.equal(first, second)
        True
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._devices = sorted({t.device.index for t in tensors if t.device.type == "cuda"})
        self._state = self._read()

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Draw from the remembered state on; afterwards the generators go on as if nothing had been drawn."""
        present = self._read()
        try:
            self._write(self._state)
            yield
        finally:
            self._write(present)

    def _read(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in self._devices)]

    def _write(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        for device, state in zip(self._devices, states[1:], strict=True):
            torch.cuda.set_rng_state(state, device)
