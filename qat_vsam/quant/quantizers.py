"""How a tensor is quantized: one `nn.Module` for each method, all with the same few methods.

`forward(x)` gives x_hat, a value on the grid; `codes(x)` the integers behind it; `scale()` the positive step
size that joins them: x_hat = scale * codes. Python-side state (bits, sign, whether a step size is set)
travels in the state_dict as a small uint8 tensor, so that `load_state_dict` alone restores a quantizer.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from qat_vsam.errors import CheckpointError, InputError, explain
from qat_vsam.quant.functional import (
    dequantize,
    lsq_quantize,
    positive_scale,
    power_of_two,
    quantize,
    sign_codes,
    sign_quantize,
)
from qat_vsam.quant.kernels import compiled_kernels
from qat_vsam.quant.statistics import StepSizeMethod, TensorStatistics, initial_step_size, range_step
from qat_vsam.quant.tensor_spec import TensorSpec, integer_range

Role = Literal["weight", "activation"]
_GRIDS = ("", " narrow", " balanced")
_KINDS = {
    kind + 4 * power: _GRIDS[kind] + (" in powers of two" if power else "") for kind in range(3) for power in (0, 1)
}


class Quantizer(nn.Module, ABC):
    """Base of all quantizers.

    Attributes:
        spec: what it was built from.
        role: "weight" or "activation".
        signed: whether the grid has negative codes; for an activation valid once `initialised`.
        initialised: whether a step size has been set.
        enabled: False turns the quantizer into the identity.
        compiled: use the fused kernels of `torch.compile`; see `set_compiled`.

    Args:
        spec: bits, sign, granularity, method.
        role: "weight" or "activation".
        channels: length of axis 0 for a per-channel weight.
        device, dtype: of the scale; float32 unless the weights are float64.
    """

    def __init__(
        self,
        spec: TensorSpec,
        role: Role,
        channels: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if spec.granularity == "per_channel" and channels is None:
            raise InputError(explain("channels", None, "the length of axis 0", "pass channels= for per_channel"))
        self.spec = spec
        self.role = role
        self.signed = spec.signed is not False
        self.initialised = False
        self.enabled = True
        self.compiled = False
        shape = (channels,) if spec.granularity == "per_channel" and channels is not None else ()
        wide = dtype if dtype == torch.float64 else torch.float32
        self._register_scale(torch.ones(shape, device=device, dtype=wide))

    @property
    def bits(self) -> int:
        """Width of the code."""
        return self.spec.bits

    @property
    def narrow(self) -> bool:
        """Whether the most negative code is left out."""
        return self.spec.narrow

    @property
    def granularity(self) -> str:
        """One scale for the tensor, "per_tensor", or one for each slice of axis 0, "per_channel"."""
        return self.spec.granularity

    @property
    def q_min(self) -> int:
        """Smallest code."""
        return integer_range(self.bits, self.signed, self.narrow, self.spec.balanced)[0]

    @property
    def q_max(self) -> int:
        """Largest code."""
        return integer_range(self.bits, self.signed, self.narrow, self.spec.balanced)[1]

    @property
    def code_stride(self) -> int:
        """Distance of two codes: 2 on the grids without zero, else 1."""
        return 2 if self.spec.balanced or self.is_sign else 1

    @property
    def levels(self) -> tuple[float, float]:
        """Smallest and largest level in units of the step size; halves of odd numbers on the balanced grid."""
        return (self.q_min / 2, self.q_max / 2) if self.spec.balanced else (self.q_min, self.q_max)

    @property
    def is_sign(self) -> bool:
        """Whether the codes are the signs -1 and 1."""
        return self.bits == 1 and self.signed

    @abstractmethod
    def step(self) -> Tensor:
        """The step size, positive, shape () or (channels,); a learned one carries its graph."""

    def scale(self) -> Tensor:
        """What joins values and codes, x_hat = scale * codes: the step size, or half of it on the balanced grid."""
        return self.step() / 2 if self.spec.balanced else self.step()

    def initialise(self, statistics: TensorStatistics, method: StepSizeMethod = "mse") -> None:
        """Set the sign, where the spec leaves it open, and the first step size from what was seen."""
        if self.spec.signed is None:
            self.signed = bool((statistics.minimum < 0).any())
        with torch.no_grad():
            self._set_scale(statistics, method)
        self.initialised = True

    @abstractmethod
    def _register_scale(self, ones: Tensor) -> None:
        """Create the scale, with the shape of `ones`."""

    @abstractmethod
    def _set_scale(self, statistics: TensorStatistics, method: StepSizeMethod) -> None:
        """The first scale from what was seen."""

    @abstractmethod
    def _fake_quantize(self, x: Tensor) -> Tensor:
        """x_hat, with the method's gradients."""

    def forward(self, x: Tensor) -> Tensor:
        """x_hat, of x's shape, dtype and memory format; x itself where the quantizer is off.

        Raises:
            InputError: no step size has been set yet.
        """
        if not self.enabled:
            return x
        self._require_step_size()
        return self._fake_quantize(x)

    @torch.no_grad()
    def codes(self, x: Tensor) -> Tensor:
        """The integer codes of x: int8 for a signed grid, uint8 otherwise."""
        self._require_step_size()
        return sign_codes(x) if self.is_sign else quantize(x, self.step(), *self.levels)

    @torch.no_grad()
    def dequantize(self, codes: Tensor) -> Tensor:
        """The values behind codes: scale * codes."""
        return dequantize(codes, self.scale())

    def _require_step_size(self) -> None:
        if not self.initialised:
            advice = "call calibrate(model, batches) first, or load a trained state_dict"
            raise InputError(explain(f"{self.role} quantizer", "no step size", "a calibrated model", advice))

    def get_extra_state(self) -> Tensor:
        """Bits, kind of the grid, sign and whether a step size is set, as four bytes."""
        state = [self.bits, self._kind, int(self.signed), int(self.initialised)]
        return torch.tensor(state, dtype=torch.uint8)

    @property
    def _kind(self) -> int:
        # powers of two read the same stored step size otherwise, and so are another grid
        return int(self.narrow) + 2 * int(self.spec.balanced) + 4 * int(self.spec.power_of_two)

    def set_extra_state(self, state: Tensor) -> None:
        """Take back what `get_extra_state` wrote.

        Raises:
            CheckpointError: the state is of a quantizer with other bits or another range.
        """
        bits, kind, signed, initialised = (int(value) for value in state.tolist())
        if (bits, kind) != (self.bits, self._kind):
            got, expected = f"{bits} bits{_KINDS[kind]}", f"{self.bits} bits{_KINDS[self._kind]}"
            raise CheckpointError(explain("quantizer state", got, expected, "prepare the model with the same spec"))
        self.signed, self.initialised = bool(signed), bool(initialised)

    def extra_repr(self) -> str:
        kind = "int" if self.signed else "uint"
        off = "" if self.enabled else ", off"
        return f"{kind}{self.bits}, {self.granularity}, range [{self.q_min}, {self.q_max}]{off}"


class LSQQuantizer(Quantizer):
    """A learned step size (arXiv 1902.08153), by `functional.lsq_quantize`.

    The step size is a Parameter of shape (1,) or (channels,); `fully_shard` takes none without an axis. Its
    gradient is scaled by 1 / sqrt(N Qp), N being the number of elements that share it; for an activation those of
    one sample. At 1 bit and signed the grid is {-s, s}, by `functional.sign_quantize`.

    Example:
        >>> from qat_vsam.quant import LSQQuantizer, TensorSpec, TensorStatistics
        >>> quantizer = LSQQuantizer(TensorSpec(bits=4), role="activation")
        >>> x = torch.linspace(0, 1.5, 6)[None]
        >>> statistics = TensorStatistics()
        >>> statistics.update(x)
        >>> quantizer.initialise(statistics)
        >>> quantizer.signed, quantizer.codes(x)
        (False, tensor([[ 0,  3,  6,  9, 12, 15]], dtype=torch.uint8))
    """

    step_size: nn.Parameter

    def _register_scale(self, ones: Tensor) -> None:
        self.step_size = nn.Parameter(ones.reshape(-1))

    @property
    def _shaped(self) -> Tensor:
        own = self.step_size if self.granularity == "per_channel" else self.step_size.reshape(())
        return power_of_two(positive_scale(own)) if self.spec.power_of_two else own

    def step(self) -> Tensor:
        return positive_scale(self._shaped)

    def gradient_factor(self, x: Tensor) -> float:
        """1 / sqrt(N Qp) for this x."""
        sharing = x.shape[0] if self.role == "activation" and x.dim() > 0 else self.step_size.numel()
        elements = x.numel() / max(sharing, 1)
        return 1 / math.sqrt(max(elements, 1) * self.levels[1])

    def _fake_quantize(self, x: Tensor) -> Tensor:
        factor = self.gradient_factor(x)
        if self.is_sign:
            return sign_quantize(x, self._shaped, factor)
        surrogate = self.spec.gradient_of_rounding
        return lsq_quantize(x, self._shaped, *self.levels, factor, compiled=self.compiled, surrogate=surrogate)

    def _set_scale(self, statistics: TensorStatistics, method: StepSizeMethod) -> None:
        step = statistics.mean_magnitude if self.is_sign else initial_step_size(statistics, *self.levels, method)
        self.step_size.copy_(torch.where(step > 0, step, 1.0))


class MinMaxQuantizer(Quantizer):
    """A step size that spans the range of the tensor: s = max(maximum / Qp, minimum / Qn), straight through.

    A weight is measured anew at each use. For an activation the step size follows the batches: at each
    forward in training mode it moves by the share `momentum` towards that of the batch. Neither moves while
    `updates_state` is False, so that a second pass over the same batch sees the quantizer of the first.

    At 1 bit and signed it is x_hat = mean|x| sign(x) instead, as in XNOR-Net, the mean over what shares the
    scale.

    Reference: arXiv 1603.05279 (1 bit).
    """

    updates_state = True
    momentum = 0.1
    current_scale: Tensor

    def _register_scale(self, ones: Tensor) -> None:
        self.register_buffer("current_scale", ones)

    def step(self) -> Tensor:
        step = self.current_scale.clone()
        return power_of_two(step) if self.spec.power_of_two else step

    def codes(self, x: Tensor) -> Tensor:
        if self.role == "weight":
            self._follow(x)
        return super().codes(x)

    def _fake_quantize(self, x: Tensor) -> Tensor:
        self._follow(x)
        if self.is_sign:
            return sign_quantize(x, self.step())
        surrogate = self.spec.gradient_of_rounding
        return lsq_quantize(x, self.step(), *self.levels, compiled=self.compiled, surrogate=surrogate)

    @torch.no_grad()
    def _follow(self, x: Tensor) -> None:
        if not self.updates_state or not (self.role == "weight" or self.training):
            return
        statistics = TensorStatistics(per_channel=self.granularity == "per_channel")
        statistics.update(x)
        measured = self._scale_of(statistics).to(self.current_scale.dtype)
        # A batch that overflowed must not spoil the steps after it.
        measured = torch.where(measured.isfinite(), measured, self.current_scale)
        self.current_scale.lerp_(measured, 1.0 if self.role == "weight" else self.momentum)

    def _set_scale(self, statistics: TensorStatistics, method: StepSizeMethod) -> None:
        self.current_scale.copy_(self._scale_of(statistics))

    def _scale_of(self, statistics: TensorStatistics) -> Tensor:
        step = statistics.mean_magnitude if self.is_sign else range_step(statistics, *self.levels)
        return torch.where(step == 0, 1.0, step)


def make_quantizer(
    spec: TensorSpec,
    role: Role,
    channels: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Quantizer:
    """The quantizer that a spec asks for; arguments as for `Quantizer`.

    A weight is signed unless the spec says otherwise, and at 1 bit then mean|w| sign(w) whatever the method.
    """
    if role == "weight" and spec.signed is None:
        spec = dataclasses.replace(spec, signed=True)
    kind: Callable[..., Quantizer] = {"lsq": LSQQuantizer, "minmax": MinMaxQuantizer}[spec.method]
    if spec.bits == 1 and role == "weight" and spec.signed:
        kind = MinMaxQuantizer
    return kind(spec, role, channels, device, dtype)


def set_quantizers_enabled(model: nn.Module, enabled: bool) -> None:
    """Switch every quantizer of the model on, or off: the model is then the float one, bit for bit."""
    for module in model.modules():
        if isinstance(module, Quantizer):
            module.enabled = enabled


def set_compiled(model: nn.Module, enabled: bool = True) -> None:
    """Let every quantizer of the model use the fused kernels of `torch.compile`, or the eager ones again.

    The kernels are compiled at first use, once a process: a few seconds. They see every tensor as a vector or
    a matrix of changeable size, so that no batch or image size compiles anew.

    Raises:
        MissingDependencyError: no working compiler is found; the quantizers stay as they were.
    """
    if enabled:
        compiled_kernels()
    for module in model.modules():
        if isinstance(module, Quantizer):
            module.compiled = enabled
