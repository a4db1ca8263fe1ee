"""What all quantizers have in common.

`forward(x)` gives x_hat, a value on the grid; `codes(x)` the integers behind it; `scale()` the positive step
size that joins them: x_hat = scale * codes, or scale * (codes - zero_point) on an asymmetric grid. Python-side
state (bits, sign, whether a step size is set) travels in the state_dict as a small uint8 tensor, so that
`load_state_dict` alone restores a quantizer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from qat_vsam.errors import CheckpointError, InputError, explain
from qat_vsam.quant.functional import dequantize, quantize, sign_codes
from qat_vsam.quant.statistics import StepSizeMethod, TensorStatistics
from qat_vsam.quant.tensor_spec import TensorSpec, integer_range

Role = Literal["weight", "activation"]
# Bits of the stored state that tell one grid of the same width from another.
_NARROW, _ODD, _POWER_OF_TWO = 1, 2, 4


class Quantizer(nn.Module, ABC):
    """Base of all quantizers.

    Attributes:
        spec: what it was built from.
        role: "weight" or "activation".
        signed: whether the grid has negative codes; for an activation valid once `initialised`.
        initialised: whether a step size has been set.
        enabled: False turns the quantizer into the identity.
        compiled: fused kernels of `torch.compile`; see `set_compiled`.
        updates_state: whether its state follows what it quantizes.
        shared_with: 0, or 1 + the place, in module order, of the layer whose quantizer others read through; see
            `sharing.py`. It travels in the state_dict, so that a model prepared anew shares alike.

    Args:
        spec: bits, sign, granularity, method.
        role: "weight" or "activation".
        channels: number of step sizes of a weight quantized per channel or per group.
        device, dtype: of the scale; float32 unless the weights are float64.
    """

    updates_state = False

    def __init__(
        self,
        spec: TensorSpec,
        role: Role,
        channels: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if spec.granularity != "per_tensor" and channels is None:
            advice = f"pass channels= for {spec.granularity}"
            raise InputError(explain("channels", None, "the number of step sizes", advice))
        self.spec = spec
        self.role = role
        self.signed = spec.signed is not False
        self.initialised = False
        self.enabled = True
        self.compiled: bool | None = None
        self.shared_with = 0
        shape = (channels,) if spec.granularity != "per_tensor" and channels is not None else ()
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
        """One scale for the tensor, "per_tensor", for each slice of axis 0, "per_channel", or "per_group"."""
        return self.spec.granularity

    def sharing(self, x: Tensor) -> Tensor:
        """x with what shares a scale along axis 0: (groups, group size) per group, else as it is."""
        return x.reshape(-1, self.spec.group_size) if self.granularity == "per_group" else x

    def statistics(self, x: Tensor, sampling: bool = True) -> TensorStatistics:
        """What `initialise` wants to know of a weight; without `sampling` its ranges and magnitudes only."""
        statistics = TensorStatistics(self.granularity != "per_tensor", sampling)
        statistics.update(self.sharing(x))
        return statistics

    @property
    def q_min(self) -> int:
        """Smallest code."""
        return self._code_range[0]

    @property
    def q_max(self) -> int:
        """Largest code."""
        return self._code_range[1]

    @property
    def _code_range(self) -> tuple[int, int]:
        return integer_range(self.bits, self.signed, self.narrow, self.has_odd_codes)

    @property
    def has_odd_codes(self) -> bool:
        """Whether the grid is the symmetric one without zero; two codes are then a step size apart."""
        return self.spec.balanced

    @property
    def code_stride(self) -> int:
        """Distance of two codes: 2 on the grids without zero, else 1."""
        return 2 if self.has_odd_codes or self.is_sign else 1

    @property
    def levels(self) -> tuple[float, float]:
        """Smallest and largest level in units of the step size; halves of odd numbers on the balanced grid."""
        low, high = self._code_range
        return (low / 2, high / 2) if self.has_odd_codes else (low, high)

    @property
    def zero_point(self) -> Tensor | int:
        """The code of zero; 0 but for asymmetric grids, which have a tensor of shape ()."""
        return 0

    @property
    def asymmetric(self) -> bool:
        """Whether the code of zero is chosen, and not always 0."""
        return False

    @property
    def is_sign(self) -> bool:
        """Whether the codes are the signs -1 and 1."""
        return self.bits == 1 and self.signed

    @abstractmethod
    def step(self) -> Tensor:
        """The step size, positive, shape () or (channels,); a learned one carries its graph."""

    def scale(self) -> Tensor:
        """What joins values and codes, x_hat = scale * codes: the step size, or half of it on the balanced grid."""
        return self.step() / 2 if self.has_odd_codes else self.step()

    def initialise(self, statistics: TensorStatistics, method: StepSizeMethod = "mse") -> None:
        """Set the sign, where the spec leaves it open, and the first step size from what was seen."""
        if self.spec.signed is None:
            self.signed = bool((statistics.minimum < 0).any())
        with torch.no_grad():
            self._set_scale(statistics, method)
        self.initialised = True

    @torch.no_grad()
    def set_step(self, step: Tensor, zero_point: Tensor | int = 0, signed: bool | None = None) -> None:
        """Set the step size from outside, as `initialise` does from what was seen.

        Args:
            step: positive, of the shape of `step()`.
            zero_point: the code of zero, which only an asymmetric grid can choose.
            signed: whether the codes are, where the spec leaves it open.

        Raises:
            InputError: another shape, a step size that is not positive, or a zero point on a symmetric grid.

        Example:
            >>> from qat_vsam.quant import LSQQuantizer, TensorSpec
            >>> quantizer = LSQQuantizer(TensorSpec(bits=4), role="activation")
            >>> quantizer.set_step(torch.tensor(0.5), signed=False)
            >>> quantizer.codes(torch.tensor([-1.0, 1.0, 9.0]))
            tensor([ 0,  2, 15], dtype=torch.uint8)
        """
        shape = tuple(self.step().shape)
        if step.shape != shape or not bool(((step > 0) & step.isfinite()).all()):
            got = f"{tuple(step.shape)}, smallest {step.min().item():g}"
            raise InputError(explain("step", got, f"positive numbers of shape {shape}", "give one for each scale"))
        if not self.asymmetric and int(zero_point) != 0:
            raise InputError(explain("zero_point", int(zero_point), "0 on a symmetric grid", "use method lsq_plus"))
        if self.spec.signed is None and signed is not None:
            self.signed = signed
        self._store(step, zero_point)
        self.initialised = True

    @abstractmethod
    def _store(self, step: Tensor, zero_point: Tensor | int = 0) -> None:
        """Keep this step size, and on an asymmetric grid the code of zero."""

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
        x_hat = self._fake_quantize(self.sharing(x))
        return x_hat if x_hat.shape == x.shape else x_hat.reshape(x.shape)

    @torch.no_grad()
    def codes(self, x: Tensor) -> Tensor:
        """The integer codes of x: int8 for a signed grid, uint8 otherwise."""
        self._require_step_size()
        return sign_codes(x) if self.is_sign else self._codes(x, self.step())

    def _codes(self, x: Tensor, step: Tensor) -> Tensor:
        return quantize(self.sharing(x), step, *self.levels, self.zero_point).reshape(x.shape)

    @torch.no_grad()
    def dequantize(self, codes: Tensor) -> Tensor:
        """The values behind codes: scale * (codes - zero point)."""
        return dequantize(self.sharing(codes), self.scale(), self.zero_point).reshape(codes.shape)

    def _shaped(self, values: Tensor) -> Tensor:
        """A learned scale, which has an axis always, in the shape of `step()`."""
        return values.reshape(()) if self.granularity == "per_tensor" else values

    def _require_step_size(self) -> None:
        if not self.initialised:
            advice = "call calibrate(model, batches) first, or load a trained state_dict"
            raise InputError(explain(f"{self.role} quantizer", "no step size", "a calibrated model", advice))

    def get_extra_state(self) -> Tensor:
        """Bits, kind of the grid, sign, whether a step size is set, and in two bytes whose quantizer it is."""
        state = [self.bits, self._kind, int(self.signed), int(self.initialised), *divmod(self.shared_with, 256)]
        return torch.tensor(state, dtype=torch.uint8)

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        """As any module, but that a second name of a shared quantizer gets copies.

        Formats without aliases, such as safetensors, refuse tensors that share memory. With `keep_vars` the variables
        themselves are asked for.
        """
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if keep_vars:
            return
        for name in (*self._parameters, *self._buffers):
            ending, own = f".{name}", destination.get(prefix + name)
            if own is None:
                continue
            others = (value for key, value in destination.items() if key.endswith(ending) and key != prefix + name)
            if any(_memory(value) == _memory(own) for value in others):
                destination[prefix + name] = own.clone()

    @property
    def _kind(self) -> int:
        # powers of two read the same stored step size otherwise, and so are another grid
        return _NARROW * self.narrow + _ODD * self.has_odd_codes + _POWER_OF_TWO * self.spec.power_of_two

    def set_extra_state(self, state: Tensor) -> None:
        """Take back what `get_extra_state` wrote.

        Raises:
            CheckpointError: the state is of a quantizer with other bits or another range.
        """
        # states of four bytes, as they were written first, do not say whose quantizer it is
        bits, kind, signed, initialised, high, low = (*(int(value) for value in state.tolist()), 0, 0)[:6]
        if (bits, kind) != (self.bits, self._kind):
            got, expected = f"{bits} bits{_described(kind)}", f"{self.bits} bits{_described(self._kind)}"
            raise CheckpointError(explain("quantizer state", got, expected, "prepare the model with the same spec"))
        self.signed, self.initialised = bool(signed), bool(initialised)
        self.shared_with = 256 * high + low

    def extra_repr(self) -> str:
        kind = "int" if self.signed else "uint"
        off = "" if self.enabled else ", off"
        return f"{kind}{self.bits}, {self.granularity}, range [{self.q_min}, {self.q_max}]{off}"


def _described(kind: int) -> str:
    names = {_NARROW: " narrow", _ODD: " balanced", _POWER_OF_TWO: " in powers of two"}
    return "".join(name for bit, name in names.items() if kind & bit)


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
