"""The form in which it is written down what a runtime takes, and the search for the nearest that it takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from qat_vsam.quant.tensor_spec import TensorSpec

# A layer with quantized inputs is further from one with float inputs than any two widths are from each other.
_FLOAT_INPUTS = 16
# What a target can take from a spec but `bits`; an open sign and the narrow range are settled, not changed.
_COMPARED = ("signed", "granularity", "balanced", "method")


@dataclass(frozen=True)
class TensorRule:
    """Grids that a runtime has for one operand of a layer.

    Attributes:
        bits: widths.
        signed: signs; with one of them alone, a spec that leaves the sign open gets it.
        granularities: what may have a scale of its own; "per_group" is some weights of one output channel.
        zero_point: whether the code of zero may be another than 0, as "lsq_plus" learns it.
        narrow: widths at which the most negative code must be left out; a spec gets that there.
        balanced: whether the odd codes of the balanced grid can be carried.
    """

    bits: tuple[int, ...]
    signed: tuple[bool, ...] = (True, False)
    granularities: tuple[str, ...] = ("per_tensor",)
    zero_point: bool = False
    narrow: tuple[int, ...] = ()
    balanced: bool = False

    def nearest(self, spec: TensorSpec) -> TensorSpec | None:
        """The spec with as little changed as the rule demands, the wider of two widths; None where no change helps."""
        bits = min(self.bits, key=lambda bits: (abs(bits - spec.bits), -bits))
        new = spec if bits == spec.bits else spec.with_bits(bits)
        signed, granularity, method = new.signed, new.granularity, new.method
        if signed not in self.signed and (signed is not None or len(self.signed) == 1):
            signed = self.signed[0]
        if granularity not in self.granularities:
            # nothing here knows a size of groups that divides the layer's weights
            if self.granularities == ("per_group",):
                return None
            granularity = "per_channel" if "per_channel" in self.granularities else "per_tensor"
        if method == "lsq_plus" and not self.zero_point:
            method = "lsq"
        balanced = new.balanced and self.balanced
        narrow = new.narrow or (new.bits in self.narrow and signed is not False)
        return dataclasses.replace(
            new, signed=signed, granularity=granularity, method=method, balanced=balanced, narrow=narrow
        )


@dataclass(frozen=True)
class Kernel:
    """Layers that a runtime computes, and on what.

    Attributes:
        layers: class names of `torch.nn`; a depthwise convolution is one with groups.
        weight: its grids; any of them goes with any of `inputs`.
        inputs: grids of the input; None among them stands for float, so for weights alone.
        source: where it is documented.
        grouped: whether layers with groups are taken.
    """

    layers: tuple[str, ...]
    weight: TensorRule
    inputs: tuple[TensorRule | None, ...]
    source: str
    grouped: bool = True


@dataclass(frozen=True)
class Fit:
    """What a target makes of the specs of one layer.

    Attributes:
        weight, activation: what it runs, with the sign and the narrow range that it leaves no choice about.
        changes: (key, old, new) for each value that it cannot run; empty where it runs what was asked for.
    """

    weight: TensorSpec
    activation: TensorSpec | None
    changes: tuple[tuple[str, object, object], ...]

    @property
    def name(self) -> str:
        """The short name of the widths, such as "w4a8"."""
        return f"w{self.weight.bits}" + ("" if self.activation is None else f"a{self.activation.bits}")

    @property
    def distance(self) -> int:
        """Bits by which widths differ, and one for every other change."""
        return sum(_distance(*change) for change in self.changes)

    def advice(self) -> str:
        """The name, with all that has to change beside the widths."""
        named = [f"{key}={new}" for key, _, new in self.changes if not key.endswith("bits") and key != "activation"]
        return self.name + (f" ({', '.join(named)})" if named else "")


@dataclass(frozen=True)
class Target:
    """A runtime or format, as rules.

    Attributes:
        runs: one line for people.
        kernels: what it computes; a layer of another kind stays in float.
        bias: "float", or "accumulator": int32 on the grid of input scale times weight scale.
        export: the format of ours that it reads, None as long as there is none.
        proof: the runtime in which that file is proven.
    """

    runs: str
    kernels: tuple[Kernel, ...]
    bias: str = "float"
    export: str | None = None
    proof: str | None = None

    @property
    def line(self) -> str:
        """What it runs, and what there is to give it."""
        if self.export is None:
            return f"{self.runs}; nothing exported yet"
        return f"{self.runs}; export {self.export}, proven in {self.proof}"

    def nearest(
        self, weight: TensorSpec, activation: TensorSpec | None, layer: str | None = None, grouped: bool = False
    ) -> Fit | None:
        """The nearest specs that it runs, the wider where two are as near.

        Args:
            weight, activation: what is asked for.
            layer: class name in `torch.nn`; None for any.
            grouped: whether that layer has groups.

        Returns:
            None where there is no kernel for such a layer.
        """
        fits = self._fits(weight, activation, layer, grouped)
        return min(fits, key=lambda fit: (fit.distance, -fit.weight.bits, _order(fit.activation)), default=None)

    def _fits(
        self, weight: TensorSpec, activation: TensorSpec | None, layer: str | None, grouped: bool
    ) -> Iterator[Fit]:
        for kernel in self.kernels:
            if layer is not None and (layer not in kernel.layers or (grouped and not kernel.grouped)):
                continue
            new = kernel.weight.nearest(weight)
            for rule in kernel.inputs:
                if rule is None:
                    read = None
                else:
                    # weights alone were asked for: the input that is nearest to float is the widest
                    read = rule.nearest(activation or TensorSpec(max(rule.bits)))
                    if read is None:
                        continue
                if new is not None:
                    yield Fit(new, read, (*_changes("weight", weight, new), *_changes("activation", activation, read)))


def _order(activation: TensorSpec | None) -> int:
    return 0 if activation is None else -activation.bits


def _changes(key: str, old: TensorSpec | None, new: TensorSpec | None) -> Iterator[tuple[str, object, object]]:
    if old is None or new is None:
        if old is not new:
            before, after = ("float" if spec is None else f"{spec.bits} bits" for spec in (old, new))
            yield key, before, after
        return
    if old.bits != new.bits:
        yield f"{key}.bits", old.bits, new.bits
    for name in _COMPARED:
        if getattr(old, name) not in (getattr(new, name), None):
            yield f"{key}.{name}", getattr(old, name), getattr(new, name)


def _distance(key: str, old: object, new: object) -> int:
    if isinstance(old, int) and isinstance(new, int) and key.endswith("bits"):
        return abs(old - new)
    return _FLOAT_INPUTS if key == "activation" else 1
