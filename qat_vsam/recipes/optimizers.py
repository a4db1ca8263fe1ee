"""The optimizer of a recipe: its options written out, the optimizer built from them, and what became of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from qat_vsam.config import OptimizerSection, Recipe
from qat_vsam.errors import ConfigError, did_you_mean, explain
from qat_vsam.optim import FAMILY, OrthogonalPSF, SharpnessAware, describe, options_of, write_out
from qat_vsam.quant import QuantSpec, param_groups, prepare

WARMUP_EPOCHS = 3.0  # of plain SAM, as in the published recipe of vSAM

_BASES: dict[str, type[Optimizer]] = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
_USUAL_MOMENTUM = 0.9
# objects, which no file can hold
_OBJECTS = ("model", "uniform", "grad_scaler")
_PLACES = ("place", "scale", "direction", "radius")


def list_optimizers() -> list[str]:
    """The names that a recipe's `optimizer.name` takes."""
    return ["sgd", *FAMILY]


def resolve_optimizer(section: OptimizerSection, seed: int | None = None) -> OptimizerSection:
    """The section with every option of the named optimizer written out with its value.

    That is as given, by default, or as it follows from the others (a share, a budget from an interval). Options that
    are steps of a run are not in it unless they were given: `total_steps` is the run's length, and the warm-up of the
    published schedule is `warmup_epochs`. The result resolves to itself, and builds the same optimizer.

    Args:
        section: as read.
        seed: of the run, for optimizers that draw and were given none of their own; None leaves that open.

    Raises:
        ConfigError: an option that the optimizer does not have, or that cannot be beside the others.

    Example:
        >>> section = resolve_optimizer(OptimizerSection(name="periodic_sam", interval=4))
        >>> section.momentum, section.options["rho"], section.options["interval"], section.options["perturbed_roles"]
        (0.9, 0.05, 4, ['weight'])
    """
    check_optimizer(section)
    written = section.model_dump()
    if section.base == "sgd":
        written["momentum"] = _USUAL_MOMENTUM if section.momentum is None else section.momentum
        written["nesterov"] = bool(section.nesterov)
    if section.name != "sgd":
        written |= _written_out(section, seed)
    return OptimizerSection.model_validate(written)


def build_optimizer(recipe: Recipe, model: nn.Module, steps_per_epoch: int) -> Optimizer:
    """The optimizer over the model's groups by role.

    Where the recipe leaves it open, the optimizer has the length and the seed of the run.

    Raises:
        ConfigError: an option of the wrong kind, or one that cannot be.
        InputError: an optimizer that does not fit the model.
    """
    section = resolve_optimizer(recipe.optimizer, recipe.seed)
    groups = param_groups(model, weight_decay=section.weight_decay)
    for group in groups:
        if group.get("role") == "step_size":
            group["lr"] = section.lr * section.step_size_lr_factor
    options: dict[str, Any] = {"lr": section.lr}
    if section.base == "sgd":
        options |= {"momentum": section.momentum, "nesterov": section.nesterov}
    if section.name == "sgd":
        return _BASES[section.base](groups, **options)
    options |= section.options
    warmup_epochs = options.pop("warmup_epochs", None)
    if warmup_epochs is not None:
        options["warmup_steps"] = round(warmup_epochs * steps_per_epoch)
    if _wants_length(section):
        options.setdefault("total_steps", max(steps_per_epoch * recipe.train.epochs, 1))
    try:
        optimizer: Optimizer = FAMILY[section.name](groups, _BASES[section.base], model=model, **options)
        return optimizer
    except TypeError as error:
        raise _of_the_wrong_kind(section, error) from None


def describe_optimizer(optimizer: Optimizer, total_steps: int | None = None) -> dict[str, Any]:
    """What an optimizer is and what it derived from its options, as plain values: `optimizer_derived` of a result.

    Args:
        optimizer: as built, before or after its run.
        total_steps: length of the run.
    """
    found: dict[str, Any] = {
        "class": type(optimizer).__name__,
        "method": None,
        "schedule": None,
        "share": None,
        "perturbation": None,
        "psf_reuse": 0.0,
        "total_steps": total_steps,
        "warmup_steps": None,
        "evaluations_per_step": [1.0, 1.0],
    }
    if isinstance(optimizer, SharpnessAware):
        found |= _composition(optimizer)
    return found | {"groups": [_group(optimizer, group) for group in optimizer.param_groups]}


def evaluations_per_step(recipe: Recipe, steps_per_epoch: int) -> tuple[float, float]:
    """Least and most gradient evaluations a step of the recipe's optimizer, on average over a run."""
    # a small network with one of each kind of layer will do to ask
    stand_in = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 2))
    if recipe.quant is not None:
        prepare(stand_in, QuantSpec.preset("w8a8"))  # of whatever width
    optimizer = build_optimizer(recipe, stand_in, steps_per_epoch)
    return optimizer.declared_cost() if isinstance(optimizer, SharpnessAware) else (1.0, 1.0)


def in_miniature(section: OptimizerSection, steps: int) -> OptimizerSection:
    """VSAM's section for a run of so many steps, the published schedule's without its warm-up; others as given."""
    options: dict[str, Any] = {}
    if section.name == "vsam" and _wants_length(section):
        options = {"total_steps": steps}
    if section.name == "vsam_paper":
        options = {"warmup_steps": 0, "warmup_epochs": None}
    return OptimizerSection.model_validate(section.model_dump() | options)


def check_optimizer(section: OptimizerSection) -> None:
    """Whether the named optimizer and its base have the options that the section gives.

    Raises:
        ConfigError: naming the key.
    """
    _check_base(section)
    known = [] if section.name == "sgd" else list(_options(section.name))
    for key, value in section.options.items():
        if key not in known:
            rule = f"an option of {section.name}"
            raise ConfigError(explain(f"optimizer.{key}", repr(value), rule, _advice(section, key, known)))
    epochs, steps = (section.options.get(key) for key in ("warmup_epochs", "warmup_steps"))
    if epochs is not None and steps is not None:
        rule = f"none beside warmup_steps={steps}, which says the same"
        raise ConfigError(explain("optimizer.warmup_epochs", epochs, rule, "give one of the two"))
    if epochs is not None and not (isinstance(epochs, int | float) and epochs >= 0):
        raise ConfigError(explain("optimizer.warmup_epochs", repr(epochs), "a number >= 0", "use 3.0"))


def _check_base(section: OptimizerSection) -> None:
    for key in ("momentum", "nesterov") if section.base == "adamw" else ():
        if (value := getattr(section, key)) is not None:
            advice = f"write optimizer.{key}=null"
            raise ConfigError(explain(f"optimizer.{key}", value, "none with optimizer.base=adamw", advice))


def _advice(section: OptimizerSection, key: str, known: list[str]) -> str:
    if section.name == "vsam" and (key == "schedule" or key in _options("vsam_paper")):
        if section.options[key] == "budget":
            return "leave it out, it is the one that vsam has"
        return "optimizer.name=vsam_paper is the published algorithm"
    if section.name != "sgd" and key in FAMILY[section.name].settles:
        return f"leave it out, {section.name} is made of one of its own"
    fields = [name for name in OptimizerSection.model_fields if name != "name"]
    return did_you_mean(key, known + fields)


def _options(name: str) -> dict[str, Any]:
    """The options of a member that a recipe can give, with their defaults."""
    options = {key: value for key, value in options_of(FAMILY[name]).items() if key not in _OBJECTS}
    return options | ({"warmup_epochs": WARMUP_EPOCHS} if "warmup_steps" in options else {})


def _written_out(section: OptimizerSection, seed: int | None) -> dict[str, Any]:
    given, known = section.options, _options(section.name)
    epochs = given.pop("warmup_epochs", None)
    if "seed" in known and seed is not None:
        given.setdefault("seed", seed)
    try:
        options = write_out(FAMILY[section.name], given)
    except TypeError as error:
        raise _of_the_wrong_kind(section, error) from None
    for key in ("total_steps", "warmup_steps", "seed"):
        if key not in given:
            options.pop(key, None)
    if "warmup_epochs" in known and given.get("warmup_steps") is None:
        options.pop("warmup_steps", None)
        options["warmup_epochs"] = WARMUP_EPOCHS if epochs is None else float(epochs)
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in options.items() if key not in _OBJECTS
    }


def _wants_length(section: OptimizerSection) -> bool:
    if section.name == "vsam":
        return section.options.get("spend") == "early"
    return section.name != "sgd" and "total_steps" in _options(section.name)


def _of_the_wrong_kind(section: OptimizerSection, error: TypeError) -> ConfigError:
    """For an option of the right name and the wrong kind, such as a word for a number."""
    advice = f"correct them ({error})"
    return ConfigError(explain(f"optimizer {section.name}", section.options, "values of the right kind", advice))


def _composition(optimizer: SharpnessAware) -> dict[str, Any]:
    method, schedule, psf = optimizer.method, optimizer.schedule, optimizer.psf
    perturbation = None
    if method.perturbs:
        parts = {place: describe(getattr(optimizer.perturbation, place)) for place in _PLACES}
        perturbation = parts | {"roles": list(optimizer.perturbation.roles)}
    return {
        "method": type(method).__name__,
        "schedule": describe(schedule),
        "share": schedule.share if method.cuts else getattr(method, "share", None),
        "perturbation": perturbation,
        "psf_reuse": psf.alpha if isinstance(psf, OrthogonalPSF) else psf.gamma,
        "warmup_steps": getattr(schedule, "warmup_steps", None),
        "evaluations_per_step": list(optimizer.declared_cost()),
    }


def _group(optimizer: Optimizer, group: Mapping[str, Any]) -> dict[str, Any]:
    displaced = isinstance(optimizer, SharpnessAware) and optimizer.displaces(group)
    return {
        "role": group.get("role"),
        "parameters": sum(parameter.numel() for parameter in group["params"]),
        "lr": float(group.get("initial_lr", group["lr"])),
        "weight_decay": float(group["weight_decay"]),
        "rho": float(group["rho"]) if displaced else None,
    }
