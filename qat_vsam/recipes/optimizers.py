"""The optimizer of a recipe: a minimal stand-in, replaced by the real module when the branches meet."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn
from torch.optim import Optimizer

from qat_vsam.config import OptimizerSection, Recipe
from qat_vsam.optim import FAMILY, SharpnessAware
from qat_vsam.recipes import assemble

_OF_THE_RUN = ("total_steps", "warmup_steps", "seed", "train_size")


def resolve_optimizer(section: OptimizerSection, seed: int | None = None) -> OptimizerSection:
    """The section with the defaults of the named optimizer's signature written out."""
    if section.name == "sgd":
        return section
    found: dict[str, Any] = {}
    for parameter in inspect.signature(FAMILY[section.name]).parameters.values():
        value = parameter.default
        plain = value is None or isinstance(value, bool | int | float | str | tuple)
        if value is not parameter.empty and plain and parameter.name not in (*_OF_THE_RUN, "uniform"):
            found[parameter.name] = list(value) if isinstance(value, tuple) else value
    return OptimizerSection.model_validate(section.model_dump() | {k: found[k] for k in found} | section.options)


def build_optimizer(recipe: Recipe, model: nn.Module, steps_per_epoch: int) -> Optimizer:
    """As `assemble.build_optimizer`."""
    return assemble.build_optimizer(recipe, model, steps_per_epoch)


def describe_optimizer(optimizer: Optimizer, total_steps: int | None = None) -> dict[str, Any]:
    """A few of the facts."""
    cost = optimizer.declared_cost() if isinstance(optimizer, SharpnessAware) else (1.0, 1.0)
    groups = [
        {"role": g.get("role"), "parameters": sum(p.numel() for p in g["params"]), "rho": g.get("rho")}
        for g in optimizer.param_groups
    ]
    return {
        "class": type(optimizer).__name__,
        "total_steps": total_steps,
        "evaluations_per_step": list(cost),
        "groups": groups,
    }


def evaluations_per_step(recipe: Recipe, steps_per_epoch: int) -> tuple[float, float]:
    """As `assemble.evaluations_per_step`."""
    return assemble.evaluations_per_step(recipe, steps_per_epoch)


def in_miniature(section: OptimizerSection, steps: int) -> OptimizerSection:
    """VSAM's section for a run of so many steps."""
    options = {"warmup_steps": 0, "total_steps": steps} if section.name == "vsam" else {}
    return OptimizerSection.model_validate(section.model_dump() | options)


def check_optimizer(section: OptimizerSection) -> None:
    """As `assemble` checks it."""


def list_optimizers() -> list[str]:
    """The names that a recipe's `optimizer.name` takes."""
    return ["sgd", *FAMILY]
