"""How far an artifact, run in its own runtime, is from the fake-quantized model; and how far is too far.

    weight codes            all equal (batch-norm folding may flip the sign of a whole channel)
    activation codes        >= 99.9 % equal over all layers, each layer given the model's own input
    argmax                  >= 99.9 % of the inputs agree
    mean |logit - logit'|   <= 1e-3 of the logit spread

The logit spread is the standard deviation of each logit over the inputs, averaged over the logits: the scale
on which logits tell inputs apart. Of fewer than 1,000 inputs, one argmax may differ.

The two lower rows compare whole runs, in which float rounding can push a value over the edge between two
codes, and that difference grows from layer to layer. Fine grids in deep nets are far from themselves in that
way: the same PyTorch model with other convolution kernels may miss 1e-3. Where an artifact misses a lower
row, the model is therefore run in float64 as well. Twice its mean distance from itself is granted on top, and
argmax is judged on the inputs whose two largest logits lie further apart than twice its largest distance from
itself. The proof then says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from qat_vsam.errors import ExportMismatch, explain

CODES_EQUAL = 0.999
ARGMAX_EQUAL = 0.999
LOGIT_TOLERANCE = 1e-3
# a float layer input counts as equal within this share of its standard deviation
_FLOAT_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Noise:
    """How far a model in float32 is from itself in float64.

    Attributes:
        mean, largest: absolute difference of a logit.
    """

    mean: float
    largest: float


@dataclass(frozen=True)
class Proof:
    """The figures of one comparison.

    Attributes:
        format: "onnx", "packed" or "qonnx".
        runtime, runtime_version: what computed the artifact's side.
        inputs: how many inputs were compared.
        generated_inputs: how many of these were made from the given ones, see `generate_inputs`.
        weight_codes_equal: whether every weight code is the same; None without quantized weights, or where
            only logits were compared.
        activation_codes_equal: share of equal codes; None without quantized activations, or as above.
        rounding_noise: distance of the model's logits from its own in float64; None where nobody asked.
        argmax_agreement: share of inputs whose largest logit is the same one.
        mean_logit_difference, max_logit_difference, logit_spread: in units of the logits.
        bytes: size of the artifact.
        disabled_optimizers: graph optimizers of the runtime that were off; each session must do the same.
        notes: what else a reader should know, one sentence each.
        passed: whether every threshold was met.
        worst_layer: the layer whose inputs agree least, with that share; None where all agree.
    """

    format: str
    runtime: str
    runtime_version: str
    inputs: int
    generated_inputs: int
    weight_codes_equal: bool | None
    activation_codes_equal: float | None
    argmax_agreement: float
    mean_logit_difference: float
    max_logit_difference: float
    logit_spread: float
    rounding_noise: Noise | None
    bytes: int
    disabled_optimizers: tuple[str, ...]
    notes: tuple[str, ...]
    passed: bool
    worst_layer: str | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can carry; `from_dict` reads them back."""
        values = dataclasses.asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    def __str__(self) -> str:
        lines = [
            f"{'passed' if self.passed else 'FAILED'}: {self.format}, {self.bytes:,} bytes, "
            f"{self.runtime} {self.runtime_version}, {self.inputs} inputs",
            f"argmax agreement {self.argmax_agreement:.2%}, mean logit difference "
            f"{self.mean_logit_difference:.2g} at a spread of {self.logit_spread:.2g}",
        ]
        if self.weight_codes_equal is not None:
            lines.append(f"weight codes {'equal' if self.weight_codes_equal else 'DIFFERENT'}")
        if self.activation_codes_equal is not None:
            lines.append(f"activation codes {self.activation_codes_equal:.4%} equal")
        if self.worst_layer is not None:
            lines.append(f"least equal layer: {self.worst_layer}")
        return "\n".join([*lines, *self.notes])

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Proof:
        """The proof written by `to_dict`."""
        known = dict(values)
        known.update({key: tuple(known[key]) for key in ("disabled_optimizers", "notes")})
        if known["rounding_noise"] is not None:
            known["rounding_noise"] = Noise(**known["rounding_noise"])
        return cls(**known)

    def raise_if_failed(self, source: str) -> None:
        """Raise with the worst layer and every figure that misses its threshold.

        Raises:
            ExportMismatch: the comparison failed.
        """
        if self.passed:
            return
        codes = "" if self.activation_codes_equal is None else f", {self.activation_codes_equal:.4%} equal codes"
        got = (
            f"{self.argmax_agreement:.2%} equal argmax, mean logit difference "
            f"{self.mean_logit_difference:.3g} at spread {self.logit_spread:.3g}{codes}, "
            f"weight codes equal: {self.weight_codes_equal}"
        )
        raise ExportMismatch(
            explain(
                source,
                got,
                f"argmax and codes >= {ARGMAX_EQUAL:.1%}, difference <= {LOGIT_TOLERANCE:g} of the spread",
                f"look at layer {self.worst_layer}" if self.worst_layer else "look at the layers kept in float",
            )
        )


@dataclass
class Comparison:
    """Collects batches of both sides, and weighs them at the end.

    `weight_mismatches` names the layers whose weight codes differ; None where there are none to compare.
    """

    weight_mismatches: list[str] | None = None
    _reference: list[Tensor] = field(default_factory=list)
    _candidate: list[Tensor] = field(default_factory=list)
    _equal: dict[str, int] = field(default_factory=dict)
    _total: dict[str, int] = field(default_factory=dict)
    _integer: set[str] = field(default_factory=set)

    def add_logits(self, reference: Tensor, candidate: Tensor) -> None:
        """One batch of logits of each side, shape (N, ...)."""
        self._reference.append(reference.detach().double())
        self._candidate.append(candidate.detach().double())

    def add_layer(self, name: str, reference: Tensor, candidate: Tensor) -> None:
        """The input of one layer on each side: codes, or floats in a weight-only layer."""
        if reference.shape != candidate.shape:
            # an exporter may merge an operation with the layer behind it, such as a padding
            return
        if reference.is_floating_point():
            tolerance = _FLOAT_TOLERANCE * reference.double().std(correction=0)
            equal = (reference.double() - candidate.double()).abs() <= tolerance
        else:
            equal = reference.short() == candidate.short()
            self._integer.add(name)
        self._equal[name] = self._equal.get(name, 0) + int(equal.sum())
        self._total[name] = self._total.get(name, 0) + equal.numel()

    @property
    def logits(self) -> Tensor:
        """The reference's logits so far, float32."""
        return torch.cat(self._reference).float()

    def figures(self, noise: Noise | None = None, typical: bool = False) -> dict[str, Any]:
        """The fields of `Proof` that the comparison decides.

        Args:
            noise: what to grant on top of the thresholds.
            typical: judge the median input, not the mean: of a few inputs, one on an edge decides the mean.
        """
        reference, candidate = torch.cat(self._reference), torch.cat(self._candidate)
        difference = (reference - candidate).abs()
        classes = min(1, reference.dim() - 1)
        agreeing = reference.argmax(classes) == candidate.argmax(classes)
        spread = reference.std(dim=0, correction=0).mean().item()
        mean = difference.mean().item()
        judged = difference.flatten(1).mean(1).median().item() if typical else mean
        # a model that does not tell its inputs apart has no spread, but float rounding all the same
        rounding = torch.finfo(torch.float32).eps * reference.abs().max().item()
        tolerance = max(LOGIT_TOLERANCE * spread, rounding)
        decided = torch.ones_like(agreeing)
        if noise is not None:
            tolerance += 2 * noise.mean
            decided = _margin(reference, classes) > 2 * noise.largest
        lost = int((decided & ~agreeing).sum())
        codes = self._codes_equal()
        weights = None if self.weight_mismatches is None else not self.weight_mismatches
        return {
            "inputs": len(reference),
            "weight_codes_equal": weights,
            "activation_codes_equal": codes,
            "argmax_agreement": agreeing.double().mean().item(),
            "mean_logit_difference": mean,
            "max_logit_difference": difference.max().item(),
            "logit_spread": spread,
            "rounding_noise": noise,
            # written so that a NaN fails
            "passed": weights is not False
            and (codes is None or codes >= CODES_EQUAL)
            and lost <= max(1, (1 - ARGMAX_EQUAL) * int(decided.sum()) + 1e-9)
            and judged <= tolerance,
            "worst_layer": self._worst_layer(),
        }

    def _codes_equal(self) -> float | None:
        total = sum(self._total[name] for name in self._integer)
        return sum(self._equal[name] for name in self._integer) / total if total else None

    def _worst_layer(self) -> str | None:
        if self.weight_mismatches:
            return f"{self.weight_mismatches[0]} (its weight codes differ)"
        shares = {name: self._equal[name] / total for name, total in self._total.items() if total}
        if not shares or min(shares.values()) == 1.0:
            return None
        worst = min(shares, key=shares.__getitem__)
        return f"{worst} ({shares[worst]:.4%} of its inputs equal)"


def _margin(logits: Tensor, classes: int) -> Tensor:
    """Distance between the two largest logits; infinite where there is only one."""
    if logits.shape[classes] < 2:
        return torch.full_like(logits.select(classes, 0), torch.inf)
    first, second = logits.topk(2, dim=classes).values.unbind(classes)
    return first - second


def generate_inputs(given: Tensor, count: int, seed: int = 0) -> Tensor:
    """Inputs that resemble the given ones: mixtures of two of them, with some noise, within their range.

        x = clip(t a + (1 - t) b + 0.1 sigma n, min, max),   t uniform on [0, 1], n normal, sigma = std(given)

    Integers, such as the indices of tokens, are mixed element by element: each is that of a or of b.

    Args:
        given: shape (N, ...), floating point or integers.
        count: how many to make.
        seed: of the draws.

    Returns:
        Shape (count, ...), on the CPU.

    Example:
        >>> generate_inputs(torch.rand(4, 3, 8, 8), 10).shape
        torch.Size([10, 3, 8, 8])
    """
    given = given.detach().cpu()
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randint(len(given), (2, count), generator=generator)
    if not given.is_floating_point():
        from_first = torch.rand(count, *given.shape[1:], generator=generator) < 0.5
        return torch.where(from_first, given[first], given[second])
    t = torch.rand(count, *[1] * (given.dim() - 1), generator=generator)
    noise = torch.randn(count, *given.shape[1:], generator=generator)
    mixed = t * given[first] + (1 - t) * given[second] + 0.1 * given.float().std(correction=0) * noise
    return mixed.clamp(given.min().item(), given.max().item()).to(given.dtype)
