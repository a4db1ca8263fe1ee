"""What is quantized: bits, signedness, granularity, method and target, as plain frozen records.

A spec says nothing about how a quantizer computes (`quantizers.py`) nor where it sits (`layers.py`,
`prepare.py`). It is JSON in and JSON out, so that recipes, checkpoints and reports can carry it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qat_vsam.errors import ConfigError, did_you_mean, explain
from qat_vsam.quant.targets import MAX_BITS, MIN_BITS, TARGETS, TargetRules

Granularity = Literal["per_tensor", "per_channel"]
Method = Literal["lsq", "minmax"]

GRANULARITIES = ("per_tensor", "per_channel")
METHODS = ("lsq", "minmax")


def integer_range(bits: int, signed: bool, narrow: bool = False) -> tuple[int, int]:
    """The smallest and largest code (Qn, Qp) of a grid.

    ===========  ==========================  =================================
    grid         codes                       note
    ===========  ==========================  =================================
    unsigned     0 .. 2^b - 1                `narrow` changes nothing
    signed       -2^(b-1) .. 2^(b-1) - 1
    signed       -2^(b-1) + 1 .. 2^(b-1) - 1  `narrow`: symmetric; 2 bits = ternary
    1 bit, sgn.  -1 and 1                    the sign; there is no code 0
    ===========  ==========================  =================================

    Args:
        bits: width of the code, 1 to 8.
        signed: whether negative codes exist.
        narrow: leave out the most negative code, so that the grid is symmetric around zero.

    Raises:
        ConfigError: `bits` is not an integer in 1..8.

    Example:
        >>> integer_range(4, signed=True), integer_range(4, signed=False), integer_range(2, True, narrow=True)
        ((-8, 7), (0, 15), (-1, 1))
    """
    _check_bits("bits", bits)
    if not signed:
        return 0, 2**bits - 1
    if bits == 1:
        return -1, 1
    half: int = 2 ** (bits - 1)
    return (1 - half if narrow else -half), half - 1


@dataclass(frozen=True)
class TensorSpec:
    """How one tensor is quantized.

    Args:
        bits: width of the code, 1 to 8.
        signed: whether negative codes exist; None lets `calibrate` decide from the data.
        granularity: one scale for the whole tensor, or one for each output channel (axis 0).
        method: "lsq" learns the step size (arXiv 1902.08153); "minmax" reads it from the tensor's range.
        narrow: leave out the most negative code (2 bits become ternary).

    Raises:
        ConfigError: a value outside these choices.

    Example:
        >>> TensorSpec(bits=4, signed=True, granularity="per_channel").scheme
        'int4 per channel, lsq'
    """

    bits: int
    signed: bool | None = None
    granularity: Granularity = "per_tensor"
    method: Method = "lsq"
    narrow: bool = False

    def __post_init__(self) -> None:
        _check_bits("bits", self.bits)
        _check_choice("granularity", self.granularity, GRANULARITIES)
        _check_choice("method", self.method, METHODS)
        if self.signed not in (True, False, None):
            raise ConfigError(explain("signed", self.signed, "true, false or null", "set one of these"))
        if self.narrow not in (True, False):
            raise ConfigError(explain("narrow", self.narrow, "true or false", "set one of these"))

    @property
    def scheme(self) -> str:
        """One phrase for tables, such as "uint4 per tensor, lsq"; "int/uint" while the sign is open."""
        kind = {True: "int", False: "uint", None: "int/uint"}[self.signed]
        if self.bits == 1 and self.signed:
            return f"sign x mean, {self.granularity.replace('_', ' ')}"
        narrow = " narrow" if self.narrow and self.signed is not False else ""
        return f"{kind}{self.bits}{narrow} {self.granularity.replace('_', ' ')}, {self.method}"

    def with_bits(self, bits: int) -> TensorSpec:
        """The same spec at another width."""
        return dataclasses.replace(self, bits=bits)


_COMMON_PRESETS = ("w8a8", "w4a8", "w4a4", "w3a3", "w2a2", "w8", "w4")
_PRESET = re.compile(r"w(\d+)(?:a(\d+))?")


@dataclass(frozen=True)
class QuantSpec:
    """How a model is quantized: weights, activations, the exceptions, and the runtime in view.

    Args:
        weight: spec of every weight.
        activation: spec of every layer's input; None quantizes weights only.
        first_last_bits: weight and activation bits of the first and the last layer; None keeps both in float.
        keep: module names that stay in float, everything below them included; "re:PATTERN" matches whole
            names by a regular expression.
        target: "simulated" (the papers' convention) or "onnxruntime" (only what that runtime computes).

    Raises:
        ConfigError: an impossible value, or one that the target cannot run; the message then names the
            nearest that it can.

    Example:
        >>> spec = QuantSpec.preset("w4a8", keep=("head",))
        >>> spec.name, spec.weight.bits, spec.activation.bits, spec.first_last_bits
        ('w4a8', 4, 8, 8)
        >>> QuantSpec.from_dict(spec.to_dict()) == spec
        True
    """

    weight: TensorSpec
    activation: TensorSpec | None
    first_last_bits: int | None = 8
    keep: tuple[str, ...] = ()
    target: str = "simulated"

    def __post_init__(self) -> None:
        if not isinstance(self.weight, TensorSpec):
            raise ConfigError(explain("weight", repr(self.weight), "a TensorSpec", "see QuantSpec.preset"))
        if isinstance(self.keep, str) or not all(isinstance(name, str) for name in self.keep):
            raise ConfigError(explain("keep", repr(self.keep), "a list of module names", "write ['name']"))
        object.__setattr__(self, "keep", tuple(self.keep))
        if self.first_last_bits is not None:
            _check_bits("first_last_bits", self.first_last_bits)
        if self.activation is not None and self.activation.granularity != "per_tensor":
            raise ConfigError(
                explain(
                    "activation.granularity",
                    self.activation.granularity,
                    "per_tensor",
                    "a scale for each channel of an activation cannot leave the sum of a convolution",
                )
            )
        _check_choice("target", self.target, tuple(TARGETS))
        self._check_target(TARGETS[self.target])

    def _check_target(self, rules: TargetRules) -> None:
        widths = [("weight.bits", self.weight.bits, rules.weight_bits)]
        if self.activation is not None:
            widths.append(("activation.bits", self.activation.bits, rules.activation_bits))
        if self.first_last_bits is not None:
            both = tuple(bits for bits in rules.weight_bits if bits in rules.activation_bits)
            widths.append(("first_last_bits", self.first_last_bits, both))
        for key, bits, allowed in widths:
            if bits not in allowed:
                nearest = min(allowed, key=lambda choice, bits=bits: abs(choice - bits))  # type: ignore[misc]
                expected = f"{allowed[0]}..{allowed[-1]} for target {self.target}"
                raise ConfigError(explain(key, bits, expected, f"the nearest it can run is {nearest}"))
        if self.weight.signed is False and not rules.unsigned_weights:
            raise ConfigError(
                explain("weight.signed", False, f"true for target {self.target}", "set weight.signed to true")
            )

    @classmethod
    def preset(
        cls,
        name: str,
        *,
        target: str = "simulated",
        keep: Iterable[str] = (),
        method: Method = "lsq",
        first_last_bits: int | None = 8,
        narrow: bool = False,
    ) -> QuantSpec:
        """The spec of a short name: "w4a8" is 4-bit weights and 8-bit activations, "w4" weights only.

        Weights are signed, symmetric, one scale for each output channel; activations have one scale and the
        sign that `calibrate` finds.

        Args:
            name: "wX" or "wXaY", X and Y in 1..8.
            target, keep, first_last_bits: see the class.
            method: quantizer of weights and activations.
            narrow: leave out the most negative weight code.

        Raises:
            ConfigError: the name has another form, or its widths are out of range.
        """
        match = _PRESET.fullmatch(name.strip().lower()) if isinstance(name, str) else None
        if match is None:
            advice = did_you_mean(str(name), _COMMON_PRESETS)
            raise ConfigError(explain("preset", name, "a name like w4a8, or w4 for weights only", advice))
        weight_bits, activation_bits = int(match[1]), match[2]
        _check_bits(f"preset {name}: weight bits", weight_bits)
        if activation_bits is not None:
            _check_bits(f"preset {name}: activation bits", int(activation_bits))
        return cls(
            weight=TensorSpec(weight_bits, True, "per_channel", method, narrow),
            activation=None
            if activation_bits is None
            else TensorSpec(int(activation_bits), None, "per_tensor", method),
            first_last_bits=first_last_bits,
            keep=tuple([keep] if isinstance(keep, str) else keep),
            target=target,
        )

    @property
    def name(self) -> str:
        """The short name of the widths: "w4a4", or "w4" for weights only."""
        activation = "" if self.activation is None else f"a{self.activation.bits}"
        return f"w{self.weight.bits}{activation}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can carry; `from_dict` reads them back."""
        values = dataclasses.asdict(self)
        values["keep"] = list(self.keep)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> QuantSpec:
        """The spec written by `to_dict`.

        Raises:
            ConfigError: an unknown or missing key, or an impossible value.
        """
        _check_keys("spec", values, cls)
        arguments = dict(values)
        for key in ("weight", "activation"):
            if arguments.get(key) is not None:
                _check_keys(f"spec.{key}", arguments[key], TensorSpec)
                arguments[key] = TensorSpec(**arguments[key])
        return cls(**arguments)


def list_presets() -> list[str]:
    """Common names for `QuantSpec.preset`; every other wX and wXaY with widths in 1..8 is one too."""
    return list(_COMMON_PRESETS)


def list_methods() -> list[str]:
    """Names for `TensorSpec.method`."""
    return list(METHODS)


def _check_bits(key: str, bits: object) -> None:
    if isinstance(bits, bool) or not isinstance(bits, int) or not MIN_BITS <= bits <= MAX_BITS:
        nearest = max(MIN_BITS, min(MAX_BITS, bits)) if isinstance(bits, int) else MAX_BITS
        advice = f"choose {nearest}, or keep the layer in float"
        raise ConfigError(explain(key, bits, f"an integer in {MIN_BITS}..{MAX_BITS}", advice))


def _check_choice(key: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(explain(key, value, "one of " + ", ".join(choices), did_you_mean(str(value), choices)))


def _check_keys(key: str, values: object, record: type) -> None:
    fields = dataclasses.fields(record)
    names = [field.name for field in fields]
    if not isinstance(values, Mapping):
        raise ConfigError(explain(key, repr(values), "a mapping", "give the keys " + ", ".join(names)))
    for name in values:
        if name not in names:
            raise ConfigError(explain(f"{key}.{name}", "an unknown key", "a known one", did_you_mean(str(name), names)))
    for field in fields:
        if field.default is dataclasses.MISSING and field.name not in values:
            raise ConfigError(explain(f"{key}.{field.name}", "nothing", "a value", "add the key"))
