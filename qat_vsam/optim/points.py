r"""Where a perturbation acts: on the weights themselves, behind the weight quantizers, or on norm layers only.

    at_weights        the parameter w
    behind_quantizer  an offset added to Q(w); parameters that no quantizer stands before move themselves
    at_norms          scales and shifts of norm layers

A place yields the points that move, standing where the weights have their value; the optimizer moves them and
brings them back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qat_vsam.errors import InputError, explain

Radii = Mapping[Tensor, float]
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclass(frozen=True, eq=False)
class Point:
    """A tensor that is displaced, together with all others, by at most `rho`.

    Args:
        tensor: What moves.
        parameter: The parameter that it stands for; what is remembered of a point is remembered under it.
        rho: Radius.
        layer: The quantized layer that the parameter is the weight of, if it is one.
        uphill: 1 if the objective is worse along its gradient, -1 where the base optimizer maximizes.
    """

    tensor: Tensor
    parameter: Tensor
    rho: float
    layer: nn.Module | None = None
    uphill: float = 1.0

    @property
    def temporary(self) -> bool:
        """Whether it vanishes after the step, so that its value need not be brought back."""
        return self.tensor is not self.parameter


class Place(ABC):
    """Base of the places."""

    @abstractmethod
    def points(self, radii: Radii, model: nn.Module | None) -> Any:
        """A context manager that yields the list of points of these parameters."""

    def check(self, radii: Radii, model: nn.Module | None) -> None:  # noqa: B027 - most fit any model
        """Raise InputError if there is nothing to move."""


class AtWeights(Place):
    """The parameters themselves."""

    @contextmanager
    def points(self, radii: Radii, model: nn.Module | None) -> Iterator[list[Point]]:
        layers = quantized_layers(radii, model)
        yield [Point(parameter, parameter, rho, layers.get(parameter)) for parameter, rho in radii.items()]


class AtNorms(Place):
    """Those parameters that belong to norm layers. Reference: arXiv 2306.04226."""

    def check(self, radii: Radii, model: nn.Module | None) -> None:
        if model is None or not self._chosen(radii, model):
            got = "no model" if model is None else "a model without trainable norm layers in perturbed groups"
            do = 'pass model=, and with roles perturbed_roles=("norm",)'
            raise InputError(explain("perturbation", f'"norm_only" with {got}', "norm layers", do))

    @contextmanager
    def points(self, radii: Radii, model: nn.Module | None) -> Iterator[list[Point]]:
        yield [Point(parameter, parameter, radii[parameter]) for parameter in self._chosen(radii, model)]

    def _chosen(self, radii: Radii, model: nn.Module | None) -> list[Tensor]:
        modules = model.modules() if model is not None else ()
        own = {p for m in modules if isinstance(m, _NORMS) for p in m.parameters(recurse=False)}
        return [parameter for parameter in radii if parameter in own]


class BehindQuantizer(Place):
    """Offsets behind the weight quantizers; the latent weights never move.

    Acts on every layer of `model` that has an attribute `weight_offset` and a perturbed parameter `weight`:
    the offset, a tensor of zeros in the first pass, receives the gradient at the quantized weight and then
    becomes the displacement. Needs two tensors of the size of the quantized weights more during a step.
    """

    def check(self, radii: Radii, model: nn.Module | None) -> None:
        if model is None:
            do = "pass model="
        elif not quantized_layers(radii, model):
            do = 'prepare the model for quantization first, or use perturbation="euclidean"'
        else:
            return
        got = "no model" if model is None else "a model without quantized layers among the perturbed parameters"
        raise InputError(explain("perturbation", f'"post_quantizer" with {got}', "layers with a weight_offset", do))

    @contextmanager
    def points(self, radii: Radii, model: nn.Module | None) -> Iterator[list[Point]]:
        layers = quantized_layers(radii, model)
        placed: list[nn.Module] = []
        try:
            points = []
            for parameter, rho in radii.items():
                layer = layers.get(parameter)
                if layer is None:
                    points.append(Point(parameter, parameter, rho))
                    continue
                offset = torch.zeros_like(parameter, requires_grad=True)
                placed.append(layer)
                layer.weight_offset = offset
                points.append(Point(offset, parameter, rho, layer))
            yield points
        finally:
            for layer in placed:
                layer.weight_offset = None  # type: ignore[assignment]


def quantized_layers(radii: Radii, model: nn.Module | None) -> dict[Tensor, nn.Module]:
    """The quantized layers of the model by their weight, of those weights that are perturbed."""
    found: dict[Tensor, nn.Module] = {}
    for layer in model.modules() if model is not None else ():
        # Not `layer.weight`: where the weight is parametrized that would compute it, outside of any pass.
        weight = layer._parameters.get("weight")
        if weight is not None and weight in radii and hasattr(layer, "weight_offset"):
            found[weight] = layer
    return found
