"""What all runtimes have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor


class Runtime(ABC):
    """Callable: a batch of inputs (N, ...) to logits (N, ...), float32 on the CPU.

    Attributes:
        format: "onnx", "packed" or "qonnx".
        name: of the library that computes.
        version: of that library.
        disabled_optimizers: graph optimizers of that library that are switched off.
    """

    format: str
    name: str
    version: str
    disabled_optimizers: tuple[str, ...] = ()

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Logits of one batch."""
