"""What must not move while a network is evaluated a second time: statistics, observers, random masks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from qat_vsam.optim.distributed import copy_into


@contextmanager
def standing_still(model: nn.Module | None) -> Iterator[None]:
    """Within the context a forward pass changes no state of `model` that lasts.

    - Batch and instance norms in train mode get their running statistics and counters back on leaving, by
      copy, whatever the pass did to them. (Momentum 0 would still count the batch, and would let an infinite
      activation poison the running mean. Any switch in the module would make `torch.compile` build the network
      once more.)
    - Modules with a Python attribute `updates_state` have it False within the context.
    - Modules of brevitas that collect statistics in train mode, known by their `counter`, are in evaluation mode
      within the context.

    Both also when the forward pass raises. Without a model nothing is done.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> with standing_still(norm):
        ...     _ = norm(torch.randn(4, 2))
        >>> int(norm.num_batches_tracked), norm.running_mean
        (0, tensor([0., 0.]))
    """
    modules = list(model.modules()) if model is not None else []
    statistics = [
        buffer
        for module in modules
        if isinstance(module, _NormBase) and module.training and module.track_running_stats
        for buffer in module.buffers(recurse=False)
    ]
    switched = [module for module in modules if getattr(module, "updates_state", False) is True]
    collecting = [module for module in modules if module.training and _collects(module)]
    kept = [torch.empty_like(buffer) for buffer in statistics]
    with torch.no_grad():
        copy_into(kept, statistics)
    try:
        for module in switched:
            module.updates_state = False  # type: ignore[assignment]
        for module in collecting:
            module.training = False
        yield
    finally:
        for module in switched:
            module.updates_state = True  # type: ignore[assignment]
        for module in collecting:
            module.training = True
        with torch.no_grad():
            copy_into(statistics, kept)


def _collects(module: nn.Module) -> bool:
    return type(module).__module__.startswith("brevitas.core.") and hasattr(module, "counter")


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
