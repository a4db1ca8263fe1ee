"""What a composition has no use for is refused: an option that would change nothing is a mistake."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from torch import Tensor

from qat_vsam.errors import ConfigError, explain
from qat_vsam.optim.methods import Method
from qat_vsam.optim.perturbation import Perturbation
from qat_vsam.optim.psf import PSF
from qat_vsam.optim.schedule import Schedule

USUAL_PERTURBATION = "euclidean"
USUAL_DROPOUT = "keep"


def refuse_idle_options(
    method: Method,
    schedule: Schedule,
    psf: PSF,
    perturbation: str | Perturbation,
    perturbed_roles: Sequence[str] | None,
    dropout: str,
) -> None:
    """Raise ConfigError for an option that the method leaves without effect; the arguments of `SharpnessAware`."""
    name = type(method).__name__
    if not method.perturbs:
        for key, given, idle in (
            ("perturbation", perturbation, perturbation == USUAL_PERTURBATION),
            ("perturbed_roles", perturbed_roles, perturbed_roles is None),
        ):
            if not idle:
                rule = f"none with the method {name}, which displaces nothing"
                raise ConfigError(explain(key, repr(given), rule, "leave it out"))
    if dropout != USUAL_DROPOUT and not method.ascends:
        rule = f"none with the method {name}, which makes no second pass"
        raise ConfigError(explain("dropout", repr(dropout), rule, "leave it out"))
    if psf.gamma and not method.uses_first:
        rule = f"0 with the method {name}, which has no h"
        raise ConfigError(explain("reuse", psf.gamma, rule, "leave it out, or use the method Part"))
    if schedule.norm_tensors is not None and not method.uses_first:
        rule = f"a schedule that reads no norms, for the method {name} has no h"
        raise ConfigError(explain("schedule", type(schedule).__name__, rule, "use the method Part"))
    if schedule.looks_at_gradient and not method.ascends:
        rule = f"a schedule that does not look at the gradient, for the method {name} takes none before it decides"
        raise ConfigError(explain("schedule", type(schedule).__name__, rule, "use a schedule of steps"))
    if schedule.share != 1 and not method.cuts:
        rule = f"1 with the method {name}, which does not cut the batch"
        raise ConfigError(explain("share of the schedule", schedule.share, rule, "leave it out"))


def refuse_radius(group: Mapping[str, Any], key: str, usual: float, moves: bool) -> None:
    """Raise ConfigError if the radius of a group is none, or is one of its own although it is not displaced."""
    rho = group.get(key, usual)
    if isinstance(rho, bool) or not isinstance(rho, Real | Tensor) or not float(rho) >= 0:
        raise ConfigError(explain(f"{key} of a group", repr(rho), "a radius >= 0", "use 0.05, or 0 for none"))
    if not moves and rho not in (0, usual):
        got = f"{rho} for a group of the role {group.get('role')!r}, which is not displaced"
        do = "leave it out, or name the role in perturbed_roles"
        raise ConfigError(explain(key, got, "a radius where something is displaced", do))
