"""How one tensor is quantized: bits, signedness, granularity, method, as a plain frozen record."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from qat_vsam.errors import ConfigError, did_you_mean, explain
from qat_vsam.quant.targets import MAX_BITS, MIN_BITS

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
    check_bits("bits", bits)
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
        check_bits("bits", self.bits)
        check_choice("granularity", self.granularity, GRANULARITIES)
        check_choice("method", self.method, METHODS)
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
