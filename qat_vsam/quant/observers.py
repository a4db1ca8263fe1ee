"""Step sizes from observers of another library, such as torchao's.

An observer is called with tensors and answers `calculate_qparams()`, the scale and zero point that follow from them; a
factory makes one for the codes q_min to q_max. What of an observer's answer a quantizer can take is decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from qat_vsam.errors import ConfigError, InputError, MissingDependencyError, explain
from qat_vsam.quant.functional import wide
from qat_vsam.quant.quantizers import Quantizer, Role
from qat_vsam.quant.statistics import STEP_SIZE_METHODS, TensorStatistics, positive_everywhere
from qat_vsam.quant.tensor_spec import TensorSpec, integer_range

CalibrationMethod = Literal["mse", "lsq", "torchao-minmax", "torchao-mse"]
TORCHAO_METHODS = ("torchao-minmax", "torchao-mse")
CALIBRATION_METHODS = (*STEP_SIZE_METHODS, *TORCHAO_METHODS)
_REMEASURED = ("minmax", "dorefa")
_DO = "use calibration mse, or leave the observer out"


class Observer(Protocol):
    """What torchao's `AffineQuantizedObserverBase` does."""

    def __call__(self, x: Tensor, /) -> object:
        """Take in one tensor."""

    def calculate_qparams(self) -> tuple[Tensor, Tensor | None]:
        """Scale and zero point for the range of codes that the observer was made for."""


ObserverFactory = Callable[[int, int], Observer]


@dataclass(frozen=True)
class ObservedGrid:
    """What an observer chose for a quantizer: the step sizes, and on an asymmetric grid the code of zero."""

    signed: bool
    step: Tensor
    zero_point: Tensor | int = 0


class ObservedStatistics(TensorStatistics):
    """Statistics whose tensors an observer sees too: one for each sign that the spec leaves open, since which is
    right is known at the end only.

    The observer sees float32 at least, so that no scale is rounded to a half; an input as it is, a weight as rows, one
    for each scale, so (channels, values), (groups, values) or (1, values). Where the grid is unsigned it sees
    max(x, 0), because what is negative becomes 0 whatever the step size is. An asymmetric grid represents it, and its
    observer sees x.

    Args:
        name: of the tensor, for messages.
        quantizer: whose step sizes are looked for.
        factory: makes an observer for (q_min, q_max).
    """

    def __init__(self, name: str, quantizer: Quantizer, factory: ObserverFactory) -> None:
        super().__init__(per_channel=quantizer.granularity != "per_tensor")
        spec = quantizer.spec
        self.name = name
        self.quantizer = quantizer
        signs = (True, False) if spec.signed is None else (spec.signed,)
        with _failures_named(name):
            self._observers = {sign: factory(*integer_range(spec.bits, sign, spec.narrow)) for sign in signs}

    def update(self, x: Tensor) -> None:
        super().update(x)
        x = wide(x.detach())
        seen = x.reshape(self.quantizer.step().numel(), -1) if self.quantizer.role == "weight" else x
        for signed, observer in self._observers.items():
            with _failures_named(self.name):
                observer(seen if signed or self.quantizer.asymmetric else seen.clamp_min(0))

    def grid(self) -> ObservedGrid:
        """What the observer chose; a channel of zeros has the mean of the others, or 1, as everywhere.

        Raises:
            InputError: the observer's answer means nothing for the quantizer, or it fails.
        """
        signs = tuple(self._observers)
        signed = signs[0] if len(signs) == 1 else bool((self.minimum < 0).any())
        if signed and self.quantizer.bits == 1:
            raise InputError(explain(f"{self.name}: bits", "1, signed", "2 bits or more for an observer", _DO))
        with _failures_named(self.name):
            scale, zero_point = self._observers[signed].calculate_qparams()
        zero_point = torch.zeros_like(scale) if zero_point is None else zero_point
        return ObservedGrid(signed, self._step(scale), self._zero_point(zero_point))

    def _step(self, scale: Tensor) -> Tensor:
        own = self.quantizer.step()
        if scale.numel() != own.numel():
            granularity = "PerAxis(0)" if self.quantizer.role == "weight" else "PerTensor()"
            do = f"make the observer with torchao's {granularity}"
            raise InputError(explain(f"{self.name}: scale", f"{scale.numel()} in all", str(own.numel()), do))
        if not bool((scale.isfinite() & (scale > 0)).all()):
            raise InputError(explain(f"{self.name}: scale", scale.tolist(), "positive numbers", _DO))
        step = wide(scale).reshape(own.shape)
        # torchao's scale of zeros is the smallest number that is left to it, on which the next value overflows
        return positive_everywhere(torch.where(step > torch.finfo(torch.float32).tiny, step, 0.0))

    def _zero_point(self, zero_point: Tensor) -> Tensor | int:
        if not self.quantizer.asymmetric:
            if bool(zero_point.any()):
                do = "use MappingType.SYMMETRIC_NO_CLIPPING_ERR where q_min < 0, else ASYMMETRIC, or method lsq_plus"
                got, expected = zero_point.tolist(), f"0 on the symmetric grid of {self.quantizer.spec.method}"
                raise InputError(explain(f"{self.name}: zero point", got, expected, do))
            return 0
        code = zero_point.reshape(())
        if not 0 <= int(code) <= self.quantizer.q_max or int(code) != code.item():
            expected = f"a code of 0 to {self.quantizer.q_max}"
            raise InputError(explain(f"{self.name}: zero point", code.item(), expected, _DO))
        return code


def check_observed(name: str, spec: TensorSpec, role: Role, method: str = "") -> None:
    """Refuse a spec whose step sizes observers, or those of one of `TORCHAO_METHODS`, cannot choose.

    Raises:
        ConfigError: naming the tensor.
    """
    if role == "weight" and spec.method in _REMEASURED:
        expected = "a method that keeps its step size, for an observer"
        raise ConfigError(explain(f"{name}: method", spec.method, expected, _DO))
    if spec.balanced:
        raise ConfigError(explain(f"{name}: balanced", True, "false for an observer, which knows grids with 0", _DO))
    if role == "weight" and spec.bits == 1 and spec.signed is not False:
        raise ConfigError(explain(f"{name}: bits", 1, "2 bits or more for an observer", _DO))
    if role == "activation" and spec.method == "lsq_plus" and method == "torchao-mse":
        expected = "a symmetric grid for torchao-mse, which searches symmetric ranges"
        raise ConfigError(explain(f"{name}: method", "lsq_plus", expected, "use calibration torchao-minmax or mse"))


def check_factory(key: str, factory: object) -> None:
    """Refuse what is no function, such as an observer that is made already.

    Raises:
        ConfigError: naming the argument.
    """
    if factory is not None and (isinstance(factory, nn.Module) or not callable(factory)):
        do = "pass functools.partial(AffineQuantizedMinMaxObserver, mapping_type, torch.int32, PerTensor())"
        raise ConfigError(explain(key, type(factory).__name__, "a function of (q_min, q_max) that makes observers", do))


def torchao_factories(method: str) -> tuple[ObserverFactory, ObserverFactory]:
    """The factories of a name in `TORCHAO_METHODS`: for inputs, and for weights.

    Raises:
        MissingDependencyError: torchao is not installed.
    """
    try:
        from qat_vsam.quant.backends import torchao_observers
    except ImportError as error:
        got, do = f"{method} without torchao", "pip install torchao, or use mse"
        raise MissingDependencyError(explain("calibration", got, "an installed torchao", do)) from error
    return torchao_observers.factories(method)


@contextmanager
def _failures_named(name: str) -> Iterator[None]:
    """torchao asserts what it cannot do; the user is told at which tensor."""
    try:
        yield
    except (AssertionError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        do = "make it for these codes and one scale a tensor, with a wide target_dtype such as torch.int32"
        raise InputError(explain(f"{name}: observer", f"a failure ({error})", "scale and zero point", do)) from error
