"""How one tensor is quantized: bits, signedness, granularity, method, as a plain frozen record."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from qat_vsam.errors import ConfigError, did_you_mean, explain

Granularity = Literal["per_tensor", "per_channel", "per_group"]
Method = Literal["lsq", "lsq_plus", "pact", "dorefa", "minmax", "percentile", "mse"]

MIN_BITS, MAX_BITS = 1, 8
GRANULARITIES = ("per_tensor", "per_channel", "per_group")
METHODS = ("lsq", "lsq_plus", "pact", "dorefa", "minmax", "percentile", "mse")
# At 8 bits the odd codes would leave a byte, at 1 bit they are the signs.
BALANCED_BITS = range(2, 8)
# 1 + delta d must stay positive for |d| <= 1/2, and so must 1 - sqrt(2) pi A.
LARGEST_STRENGTH = {"ste": 0.0, "ewgs": 2.0, "stable": 1 / (math.sqrt(2) * math.pi)}
SURROGATES = tuple(LARGEST_STRENGTH)
_STRENGTH = 0.2


def integer_range(bits: int, signed: bool, narrow: bool = False, balanced: bool = False) -> tuple[int, int]:
    """The smallest and largest code (Qn, Qp) of a grid.

    ===========  ==========================  =================================
    grid         codes                       note
    ===========  ==========================  =================================
    unsigned     0 .. 2^b - 1                `narrow` changes nothing
    signed       -2^(b-1) .. 2^(b-1) - 1
    signed       -2^(b-1) + 1 .. 2^(b-1) - 1  `narrow`: symmetric; 2 bits = ternary
    balanced     -2^b + 1 .. 2^b - 1, odd    symmetric and without 0; two codes are a step size apart
    1 bit, sgn.  -1 and 1                    the sign; there is no code 0
    ===========  ==========================  =================================

    Args:
        bits: width of the code, 1 to 8.
        signed: whether negative codes exist.
        narrow: leave out the most negative code, so that the grid is symmetric around zero.
        balanced: the odd codes, which are signed.

    Raises:
        ConfigError: `bits` is not an integer in 1..8.

    Example:
        >>> integer_range(4, signed=True), integer_range(4, signed=False), integer_range(2, True, narrow=True)
        ((-8, 7), (0, 15), (-1, 1))
        >>> integer_range(2, signed=True, balanced=True)
        (-3, 3)
    """
    check_bits("bits", bits)
    if balanced:
        return 1 - 2**bits, 2**bits - 1
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
        granularity: one scale for the whole tensor, one for each output channel (axis 0), or for weights one for each
            `group_size` values in a row of an output channel.
        method: "lsq" learns the step size (arXiv 1902.08153), "lsq_plus" an offset of activations too (2004.09576),
            "pact" the clip value (1805.06085); "dorefa" squeezes
            weights of 1 to 7 bits by a tanh (1606.06160); "minmax" reads the step size from the tensor's range;
            "percentile" and "mse" keep the one that calibration chose.
        narrow: leave out the most negative code (2 bits become ternary).
        balanced: the symmetric grid without zero, {-3, -1, 1, 3} s/2 at 2 bits, for signed weights of 2 to 7 bits; an
            activation padded with zeros cannot have it.
        power_of_two: round the step size to a power of two, as shift-only hardware wants it; learned straight
            through.
        surrogate: gradient of the rounding: "ste", "ewgs" or "stable"; see `kernels.surrogate_factor`.
        percentile: of the method "percentile".
        group_size: of "per_group"; must divide the weights of an output channel.
        surrogate_strength: delta of "ewgs" (step sizes), A of "stable" (below 0.225); None for 0.2.

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
    balanced: bool = False
    power_of_two: bool = False
    surrogate: str = "ste"
    surrogate_strength: float | None = None
    percentile: float = 99.9
    group_size: int = 32

    def __post_init__(self) -> None:
        check_bits("bits", self.bits)
        check_choice("granularity", self.granularity, GRANULARITIES)
        check_choice("method", self.method, METHODS)
        if self.signed not in (True, False, None):
            raise ConfigError(explain("signed", self.signed, "true, false or null", "set one of these"))
        for key in ("narrow", "balanced", "power_of_two"):
            if getattr(self, key) not in (True, False):
                raise ConfigError(explain(key, getattr(self, key), "true or false", "set one of these"))
        if self.balanced and (self.signed is not True or self.narrow or self.bits not in BALANCED_BITS):
            got = f"true with bits={self.bits}, signed={self.signed}, narrow={self.narrow}"
            raise ConfigError(
                explain("balanced", got, "2 to 7 bits, signed, not narrow", "change these or leave it out")
            )
        if self.method == "dorefa" and (self.bits == 8 or self.signed is False or self.narrow):
            got = f"dorefa with bits={self.bits}, signed={self.signed}, narrow={self.narrow}"
            raise ConfigError(explain("method", got, "1 to 7 bits, signed, not narrow", "change these, or use lsq"))
        if self.method == "lsq_plus" and self.surrogate != "ste":
            advice = "leave it out, or use lsq"
            raise ConfigError(explain("surrogate", f"{self.surrogate} with lsq_plus", "ste", advice))
        if not 50 < self.percentile <= 100:
            raise ConfigError(explain("percentile", self.percentile, "a number in (50, 100]", "use 99.9"))
        if isinstance(self.group_size, bool) or not isinstance(self.group_size, int) or self.group_size < 1:
            raise ConfigError(explain("group_size", self.group_size, "a positive integer", "use 32, 64 or 128"))
        check_choice("surrogate", self.surrogate, SURROGATES)
        strength, largest = self.surrogate_strength, LARGEST_STRENGTH[self.surrogate]
        if strength is not None and not 0 < strength < largest:
            rule = f"a number in (0, {largest:.3g})" if largest else "none for the straight-through gradient"
            raise ConfigError(explain("surrogate_strength", strength, rule, "leave it out"))

    @property
    def scheme(self) -> str:
        """One phrase for tables, such as "uint4 per tensor, lsq"; "int/uint" while the sign is open."""
        kind = {True: "int", False: "uint", None: "int/uint"}[self.signed]
        sharing = self.granularity.replace("_", " ")
        if self.granularity == "per_group":
            sharing += f" of {self.group_size}"
        if self.bits == 1 and self.signed:
            return f"sign x mean, {sharing}"
        grid = " narrow" if self.narrow and self.signed is not False else " balanced" if self.balanced else ""
        rounded = ", powers of two" if self.power_of_two else ""
        rounded += "" if self.surrogate == "ste" else f", {self.surrogate}"
        return f"{kind}{self.bits}{grid} {sharing}, {self.method}{rounded}"

    @property
    def gradient_of_rounding(self) -> tuple[str, float]:
        """The surrogate and its strength."""
        strength = _STRENGTH if self.surrogate_strength is None else self.surrogate_strength
        return self.surrogate, 0.0 if self.surrogate == "ste" else strength

    def with_bits(self, bits: int) -> TensorSpec:
        """The same spec at another width; where that has no odd codes a balanced grid becomes the usual one,
        "dorefa" becomes "minmax", and per group becomes per channel.
        """
        method = "minmax" if self.method == "dorefa" and bits == 8 else self.method
        granularity: Granularity = "per_channel" if self.granularity == "per_group" else self.granularity
        balanced = self.balanced and bits in BALANCED_BITS
        return dataclasses.replace(self, bits=bits, method=method, granularity=granularity, balanced=balanced)


def check_bits(key: str, bits: object) -> None:
    """Raise ConfigError unless `bits` is an integer in 1..8."""
    if isinstance(bits, bool) or not isinstance(bits, int) or not MIN_BITS <= bits <= MAX_BITS:
        nearest = max(MIN_BITS, min(MAX_BITS, bits)) if isinstance(bits, int) else MAX_BITS
        advice = f"choose {nearest}, or keep the layer in float"
        raise ConfigError(explain(key, bits, f"an integer in {MIN_BITS}..{MAX_BITS}", advice))


def check_choice(key: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise ConfigError unless the value is one of the choices."""
    if value not in choices:
        raise ConfigError(explain(key, value, "one of " + ", ".join(choices), did_you_mean(str(value), choices)))


def check_keys(key: str, values: object, record: type) -> None:
    """Raise ConfigError unless the values are a mapping with the fields of a dataclass, none unknown or missing."""
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
