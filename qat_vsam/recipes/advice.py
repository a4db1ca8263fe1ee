"""What a comparison lacks to be believed, told before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isclose

from qat_vsam.config import Comparison, Recipe
from qat_vsam.errors import explain
from qat_vsam.recipes.resolve import resolve
from qat_vsam.report import assign_roles

FEWEST_SEEDS = 3
_FLOAT = "float32"


def advice(comparison: Comparison) -> list[str]:
    """A line for each thing that a hostile reader would miss; an arm whose settings are tuned counts as written.

    Raises:
        InputError: an arm cannot be.
    """
    recipes = {arm: resolve(comparison.arm(arm, 0)) for arm in comparison.arms}
    trained = {arm: recipe for arm, recipe in recipes.items() if recipe.train.epochs > 0}
    told = [(arm, recipe.precision, recipe.precision, recipe.optimizer.name) for arm, recipe in trained.items()]
    roles = dict(zip(trained, assign_roles(told, comparison.roles), strict=True))
    return [*_few_seeds(comparison), *_without_float(recipes, roles), *_controls(trained, roles)]


def _few_seeds(comparison: Comparison) -> Iterator[str]:
    if comparison.seeds < FEWEST_SEEDS:
        rule = f"{FEWEST_SEEDS} or more, for fewer make no interval"
        yield explain("seeds", comparison.seeds, rule, f"write seeds: {FEWEST_SEEDS}, or better 8")


def _without_float(recipes: Mapping[str, Recipe], roles: Mapping[str, str]) -> Iterator[str]:
    widths = dict.fromkeys(recipe.precision for recipe in recipes.values() if recipe.precision != _FLOAT)
    if not widths:
        return
    there = {roles[arm] for arm in roles if recipes[arm].precision == _FLOAT}
    for role, name in (("sgd", "SGD"), ("sam", "SAM")):
        if role not in there:
            got, rule = f"{', '.join(widths)} without float32 {name}", f"float32 {name} beside quantized arms"
            yield explain("arms", got, rule, f"add float32-{role}: {{quant: null, optimizer: {{name: {role}}}}}")


def _controls(trained: Mapping[str, Recipe], roles: Mapping[str, str]) -> Iterator[str]:
    """The control for a split batch has to split as often as VSAM does, and as large a part."""
    for arm, recipe in trained.items():
        methods = [
            other
            for other, role in roles.items()
            if role == "vsam" and trained[other].precision == recipe.precision and _splits(trained[other]) is not None
        ]
        own = _splits(recipe)
        if roles[arm] != "split_sgd" or own is None or not methods:
            continue
        theirs = [_splits(trained[other]) for other in methods]
        if any(other is not None and all(map(isclose, own, other)) for other in theirs):
            continue
        rate, share = theirs[0] or own
        got = f"a control that splits at {own[0]:g} of the steps, {own[1]:g} of the batch"
        rule = f"{rate:g} and {share:g}, as {methods[0]} does"
        yield explain(f"arms.{arm}", got, rule, f"give it optimizer.rate={rate:.15g} and optimizer.share={share:.15g}")


def _splits(recipe: Recipe) -> tuple[float, float] | None:
    """At which rate a resolved recipe splits its batches, and which share it splits off; None where it does not."""
    options = recipe.optimizer.options
    if recipe.optimizer.name == "split_sgd":
        return float(options["rate"]), float(options["share"])
    if recipe.optimizer.name == "vsam" and options["method"] == "part" and options["share"] is not None:
        share = float(options["share"])
        return (float(options["gradient_budget"]) - 1) / share, share
    return None
