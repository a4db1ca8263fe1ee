"""What each runtime can compute, as data: `QuantSpec` refuses what its target cannot run."""

from __future__ import annotations

from dataclasses import dataclass

MIN_BITS, MAX_BITS = 1, 8


@dataclass(frozen=True)
class TargetRules:
    """The choices that a runtime takes.

    Attributes:
        weight_bits, activation_bits: widths.
        unsigned_weights: whether weights without negative codes can be carried.
    """

    weight_bits: tuple[int, ...]
    activation_bits: tuple[int, ...]
    unsigned_weights: bool


_ALL_BITS = tuple(range(MIN_BITS, MAX_BITS + 1))

TARGETS: dict[str, TargetRules] = {
    # The papers' convention: whatever the formulas define.
    "simulated": TargetRules(weight_bits=_ALL_BITS, activation_bits=_ALL_BITS, unsigned_weights=True),
    # QuantizeLinear carries int8 or uint8, a narrower grid being a Clip behind it; the signed 1-bit grid
    # {-1, 1} has no code for zero and so no such form. Weights are read with a zero point of 0.
    "onnxruntime": TargetRules(weight_bits=_ALL_BITS[1:], activation_bits=_ALL_BITS[1:], unsigned_weights=False),
}


def list_targets() -> list[str]:
    """Names for `QuantSpec.target`."""
    return list(TARGETS)
