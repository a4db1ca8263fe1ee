"""What is quantized: the specs of weights and activations, the exceptions and the target, as a plain frozen record.

A spec says nothing about how a quantizer computes (`quantizers`) nor where it sits (`layers.py`,
`prepare.py`). It is JSON in and JSON out, so that recipes, checkpoints and reports can carry it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from qat_vsam.errors import ConfigError, did_you_mean, explain
from qat_vsam.quant.targets import TARGETS, fit_spec
from qat_vsam.quant.tensor_spec import (
    MAX_BITS,
    METHODS,
    MIN_BITS,
    Method,
    TensorSpec,
    check_bits,
    check_choice,
    check_keys,
)

_COMMON_PRESETS = ("w8a8", "w4a8", "w4a4", "w3a3", "w2a2", "w8", "w4")
RESIDUAL_ADDS = ("float", "quantized")
BATCH_NORM = ("keep", "freeze")
_PRESET = re.compile(r"w(\d+)(?:a(\d+))?")


@dataclass(frozen=True)
class LayerRule:
    """How some layers are quantized, whatever holds for the others.

    Args:
        layers: a module's name, which stands for everything below it too, or "re:PATTERN", a regular expression
            for whole names.
        weight: spec of their weights; None keeps the layers in float.
        activation: spec of their inputs; None leaves these in float.

    Raises:
        ConfigError: inputs are quantized but no weights, or each channel of an input has a scale of its own.

    Example:
        >>> LayerRule.preset("re:layer4.*", "w8a8").weight.bits
        8
    """

    layers: str
    weight: TensorSpec | None
    activation: TensorSpec | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.layers, str) or not self.layers:
            raise ConfigError(explain("layers", repr(self.layers), "a module's name or re:PATTERN", "write one"))
        if self.weight is None and self.activation is not None:
            advice = "give a weight spec, or leave both out to keep the layers in float"
            raise ConfigError(explain(f"override {self.layers}", "an activation alone", "a weight spec too", advice))
        _check_activation(f"override {self.layers}: activation", self.activation)

    @classmethod
    def preset(cls, layers: str, bits: str, **options: Any) -> LayerRule:
        """The rule of a short name, with options as for `QuantSpec.preset`, or of "float"."""
        if bits == "float":
            return cls(layers, None)
        spec = QuantSpec.preset(bits, **options)
        return cls(layers, spec.weight, spec.activation)


@dataclass(frozen=True)
class QuantSpec:
    """How a model is quantized: weights, activations, the exceptions, and the runtime in view.

    Args:
        weight: spec of every weight.
        activation: spec of every layer's input; None quantizes weights only.
        first_last_bits: weight and activation bits of the first and the last layer; None keeps both in float.
        keep: module names that stay in float, everything below them included; "re:PATTERN" matches whole
            names by a regular expression.
        overrides: rules for some layers; the first that names a layer holds, before `keep` and `first_last_bits`.
        residual_adds: "float", or "quantized": what additions, concatenations and average pools read is quantized as
            `activation` says, one quantizer a tensor, one for all that a concatenation joins.
        batch_norm: "keep" trains on, "freeze" holds its statistics after `freeze_after` steps; see
            `freeze_batch_norm`.
        freeze_after: steps of training before batch norm is frozen.
        target: "simulated" (the papers' convention), or a runtime or format of `list_targets`, which then decides what
            it leaves no choice about: the sign of inputs where it has one alone, and the narrow range of weights.

    Raises:
        ConfigError: an impossible value, or one that the target runs in no layer; the message then names the
            nearest that it can. `prepare` refuses what it runs in other layers only.

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
    overrides: tuple[LayerRule, ...] = ()
    residual_adds: str = "float"
    batch_norm: str = "keep"
    freeze_after: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.weight, TensorSpec):
            raise ConfigError(explain("weight", repr(self.weight), "a TensorSpec", "see QuantSpec.preset"))
        if isinstance(self.keep, str) or not all(isinstance(name, str) for name in self.keep):
            raise ConfigError(explain("keep", repr(self.keep), "a list of module names", "write ['name']"))
        object.__setattr__(self, "keep", tuple(self.keep))
        if self.first_last_bits is not None:
            check_bits("first_last_bits", self.first_last_bits)
        _check_activation("activation", self.activation)
        object.__setattr__(self, "overrides", tuple(self.overrides))
        if not all(isinstance(rule, LayerRule) for rule in self.overrides):
            advice = 'write LayerRule.preset("NAME", "w8a8")'
            raise ConfigError(explain("overrides", repr(self.overrides), "a list of LayerRule", advice))
        check_choice("target", self.target, tuple(TARGETS))
        self._check_policies()
        self._settle()

    def _check_policies(self) -> None:
        check_choice("residual_adds", self.residual_adds, RESIDUAL_ADDS)
        check_choice("batch_norm", self.batch_norm, BATCH_NORM)
        if self.residual_adds == "quantized" and self.activation is None:
            advice = "give activation bits, such as w4a8, or leave it out"
            raise ConfigError(explain("residual_adds", "quantized for weights only", "quantized activations", advice))
        if isinstance(self.freeze_after, bool) or not isinstance(self.freeze_after, int) or self.freeze_after < 0:
            raise ConfigError(explain("freeze_after", self.freeze_after, "a number of steps >= 0", "write 0 or more"))
        if self.freeze_after and self.batch_norm != "freeze":
            got = f"{self.freeze_after} with batch_norm {self.batch_norm}"
            raise ConfigError(explain("freeze_after", got, "batch_norm freeze beside it", "set batch_norm to freeze"))

    def _settle(self) -> None:
        """Take from the target what it leaves no choice about, and refuse what none of its kernels can run."""
        rules = []
        for rule in self.overrides:
            if rule.weight is not None:
                fit = fit_spec(self.target, f"override {rule.layers}: ", rule.weight, rule.activation)
                rule = dataclasses.replace(rule, weight=fit.weight, activation=fit.activation)
            rules.append(rule)
        fit = fit_spec(self.target, "", self.weight, self.activation)
        for name, value in (("weight", fit.weight), ("activation", fit.activation), ("overrides", tuple(rules))):
            object.__setattr__(self, name, value)
        nearest = self._nearest_edges(self.target)
        if nearest != self.first_last_bits:
            advice = "keep both layers in float" if nearest is None else f"the nearest it can run is {nearest}"
            expected = f"a width that target {self.target} runs"
            raise ConfigError(explain("first_last_bits", self.first_last_bits, expected, advice))

    def _nearest_edges(self, target: str) -> int | None:
        if self.first_last_bits is None:
            return None
        own = self.first_last_bits
        for bits in sorted(range(MIN_BITS, MAX_BITS + 1), key=lambda bits: (abs(bits - own), -bits)):
            activation = None if self.activation is None else self.activation.with_bits(bits)
            fit = TARGETS[target].nearest(self.weight.with_bits(bits), activation)
            if fit is not None and not fit.changes:
                return bits
        return None

    def nearest(self, target: str) -> QuantSpec:
        """The nearest spec that a target runs in some layer; this one, for that target, where it runs it.

        Widths count by their difference in bits, everything else as one; the wider of two that are as near is taken.

        Example:
            >>> QuantSpec.preset("w3a3").nearest("litert").name
            'w4a8'
        """
        check_choice("target", target, tuple(TARGETS))
        rules = []
        for rule in self.overrides:
            if rule.weight is not None and (fit := TARGETS[target].nearest(rule.weight, rule.activation)):
                rule = dataclasses.replace(rule, weight=fit.weight, activation=fit.activation)
            rules.append(rule)
        own = TARGETS[target].nearest(self.weight, self.activation)
        changed = {} if own is None else {"weight": own.weight, "activation": own.activation}
        moved = dataclasses.replace(self, target="simulated", overrides=tuple(rules), **changed)  # type: ignore[arg-type]
        return dataclasses.replace(moved, target=target, first_last_bits=moved._nearest_edges(target))

    @classmethod
    def preset(
        cls,
        name: str,
        *,
        target: str = "simulated",
        keep: Iterable[str] = (),
        overrides: Iterable[LayerRule] = (),
        method: Method = "lsq",
        first_last_bits: int | None = 8,
        narrow: bool = False,
        balanced: bool = False,
        power_of_two: bool = False,
        surrogate: str = "ste",
        surrogate_strength: float | None = None,
        group_size: int | None = None,
        residual_adds: str = "float",
        batch_norm: str = "keep",
        freeze_after: int = 0,
    ) -> QuantSpec:
        """The spec of a short name: "w4a8" is 4-bit weights and 8-bit activations, "w4" weights only.

        Weights are signed, symmetric, one scale for each output channel; activations have one scale and the
        sign that `calibrate` finds.

        Args:
            name: "wX" or "wXaY", X and Y in 1..8.
            target, keep, overrides, first_last_bits, residual_adds, batch_norm, freeze_after: see the class.
            method: quantizer of weights and activations; "dorefa" and "pact" both mean weights by "dorefa" and
                activations by "pact", as the PACT paper has them; "lsq_plus" means weights by "lsq".
            narrow: leave out the most negative weight code.
            balanced: weights of 2 to 7 bits on the symmetric grid without zero.
            power_of_two, surrogate, surrogate_strength: of weights and activations; see `TensorSpec`.
            group_size: one scale for so many weights of an output channel; None for one a channel. The first and the
                last layer keep one a channel.

        Raises:
            ConfigError: the name has another form, or its widths are out of range.
        """
        match = _PRESET.fullmatch(name.strip().lower()) if isinstance(name, str) else None
        if match is None:
            advice = did_you_mean(str(name), _COMMON_PRESETS)
            raise ConfigError(explain("preset", name, "a name like w4a8, or w4 for weights only", advice))
        weight_bits, activation_bits = int(match[1]), match[2]
        check_bits(f"preset {name}: weight bits", weight_bits)
        if activation_bits is not None:
            check_bits(f"preset {name}: activation bits", int(activation_bits))
        both: dict[str, Any] = {
            "power_of_two": power_of_two,
            "surrogate": surrogate,
            "surrogate_strength": surrogate_strength,
        }
        other_weights: dict[str, Method] = {"pact": "dorefa", "lsq_plus": "lsq"}
        of_weights = other_weights.get(method, method)
        of_activations: Method = "pact" if method == "dorefa" else method
        weight = TensorSpec(weight_bits, True, "per_channel", of_weights, narrow, balanced, **both)
        if group_size is not None:
            weight = dataclasses.replace(weight, granularity="per_group", group_size=group_size)
        if activation_bits is None:
            activation = None
        else:
            activation = TensorSpec(int(activation_bits), None, "per_tensor", of_activations, **both)
        return cls(
            weight=weight,
            activation=activation,
            first_last_bits=first_last_bits,
            keep=tuple([keep] if isinstance(keep, str) else keep),
            target=target,
            overrides=tuple(overrides),
            residual_adds=residual_adds,
            batch_norm=batch_norm,
            freeze_after=freeze_after,
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
        values["overrides"] = list(values["overrides"])
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> QuantSpec:
        """The spec written by `to_dict`.

        Raises:
            ConfigError: an unknown or missing key, or an impossible value.
        """
        check_keys("spec", values, cls)
        arguments = _with_tensor_specs("spec", values)
        rules = []
        for number, rule in enumerate(arguments.get("overrides", ())):
            check_keys(f"spec.overrides[{number}]", rule, LayerRule)
            rules.append(LayerRule(**_with_tensor_specs(f"spec.overrides[{number}]", rule)))
        return cls(**arguments | {"overrides": tuple(rules)})


def list_presets() -> list[str]:
    """Common names for `QuantSpec.preset`; every other wX and wXaY with widths in 1..8 is one too."""
    return list(_COMMON_PRESETS)


def list_methods() -> list[str]:
    """Names for `TensorSpec.method`."""
    return list(METHODS)


def _with_tensor_specs(key: str, values: Mapping[str, Any]) -> dict[str, Any]:
    arguments = dict(values)
    for name in ("weight", "activation"):
        if arguments.get(name) is not None:
            check_keys(f"{key}.{name}", arguments[name], TensorSpec)
            arguments[name] = TensorSpec(**arguments[name])
    return arguments


def _check_activation(key: str, activation: TensorSpec | None) -> None:
    if activation is not None and activation.balanced:
        advice = "leave it to weights: zero, which pads an input, is not on that grid"
        raise ConfigError(explain(f"{key}.balanced", True, "false", advice))
    if activation is not None and activation.granularity != "per_tensor":
        advice = "a scale for each channel of an activation cannot leave the sum of a convolution"
        raise ConfigError(explain(f"{key}.granularity", activation.granularity, "per_tensor", advice))
