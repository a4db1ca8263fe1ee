"""The options of an optimizer of the family: which it has, what each is, and what it is made of."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from qat_vsam.optim.loss_scale import policy
from qat_vsam.optim.perturbation import build_perturbation
from qat_vsam.optim.schedule import Schedule
from qat_vsam.optim.sharpness_aware import SharpnessAware

REQUIRED = inspect.Parameter.empty
_COMPOSED = ("method", "schedule", "psf")  # by the member, unless it takes a word for one of them


def options_of(member: type[SharpnessAware]) -> dict[str, Any]:
    """The options of a member with their defaults, its own first; `REQUIRED` where there is no default.

    Example:
        >>> from qat_vsam.optim import PeriodicSAM
        >>> options = options_of(PeriodicSAM)
        >>> options["interval"], options["perturbation"], "psf" in options
        (5, 'euclidean', False)
    """
    common = {
        name: default
        for name, default in _keywords(SharpnessAware).items()
        if name not in _COMPOSED and name not in member.settles
    }
    return _keywords(member) | {name: common[name] for name in common if name not in _keywords(member)}


def write_out(member: type[SharpnessAware], given: Mapping[str, Any]) -> dict[str, Any]:
    """Every option of a member with its value: as given, by default, or as it follows from the others.

    Required options that were not given are left out. An optimizer built with the result is the one that would be built
    with what was given.

    Raises:
        ConfigError: Options that cannot be, or cannot be together, as far as that shows without parameters.

    Example:
        >>> from qat_vsam.optim import VSAM
        >>> options = write_out(VSAM, {"interval": 2, "share": 0.5})
        >>> options["gradient_budget"], options["perturbed_roles"]
        (1.25, ('weight',))
    """
    options = {name: value for name, value in (options_of(member) | dict(given)).items() if value is not REQUIRED}
    options["nonfinite"] = policy(options["nonfinite"], options["grad_scaler"])
    if "perturbed_roles" in options and options["perturbed_roles"] is None:
        options["perturbed_roles"] = build_perturbation(options["perturbation"], None).roles
    return member.derive(options)


def describe(component: object) -> dict[str, Any]:
    """The class and the settings of a schedule or of a part of a perturbation, as plain values.

    Example:
        >>> from qat_vsam.optim import Periodic
        >>> describe(Periodic(3))
        {'class': 'Periodic', 'share': 1.0, 'interval': 3}
    """
    state = component.state_dict() if isinstance(component, Schedule) else {}
    settings = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vars(component).items()
        if not name.startswith("_") and name not in state
    }
    return {"class": type(component).__name__, **settings}


def _keywords(kind: type[SharpnessAware]) -> dict[str, Any]:
    parameters = inspect.signature(kind).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
