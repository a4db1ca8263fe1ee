"""What the arms of a comparison must be to one another: starts, roles, and the grids of their settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from qat_vsam.errors import ConfigError, did_you_mean, explain

if TYPE_CHECKING:
    from qat_vsam.config import Comparison, Recipe, TuneSection

ROLES = ("sgd", "sam", "split_sgd", "vsam", "other")
# folders of a comparison that hold no arm
RESERVED = ("report", "tune")


def check_arms(comparison: Comparison) -> None:
    """Every arm with every setting to try is a recipe, and names no arm that is not there.

    Raises:
        ConfigError: naming the arm and the key.
    """
    recipes = {arm: comparison.arm(arm, 0) for arm in comparison.arms}
    for arm in recipes:
        _check_start(arm, recipes)
        _check_name_and_role(arm, comparison.arms[arm].get("role"))
    if comparison.tune is not None:
        _check_grids(comparison, comparison.tune, recipes)
        _check_shared_choices(comparison.tune, recipes)


def _check_start(arm: str, recipes: Mapping[str, Recipe]) -> None:
    start = recipes[arm].init_from
    if start is None:
        return
    others = [name for name, recipe in recipes.items() if name != arm and recipe.init_from is None]
    if start not in others:
        advice = did_you_mean(start, others) if others else "let another arm train from its own start"
        raise ConfigError(explain(f"arms.{arm}.init_from", start, "another arm that starts by itself", advice))


def _check_name_and_role(arm: str, role: object) -> None:
    if arm in RESERVED:
        raise ConfigError(explain(f"arms.{arm}", arm, "a name that is no folder of the comparison's own", "rename it"))
    if role is not None and role not in ROLES:
        advice = did_you_mean(str(role), ROLES)
        raise ConfigError(explain(f"arms.{arm}.role", repr(role), "one of " + ", ".join(ROLES), advice))


def _check_grids(comparison: Comparison, tune: TuneSection, recipes: Mapping[str, Recipe]) -> None:
    for arm, grid in tune.grids.items():
        key = f"tune.grids.{arm}"
        if arm not in recipes:
            raise ConfigError(explain(key, arm, "an arm", did_you_mean(arm, recipes)))
        if recipes[arm].init_from is not None or recipes[arm].train.epochs == 0:
            raise ConfigError(explain(key, arm, "an arm that trains from its own start", f"tune.same_as.{arm}"))
        for setting, values in grid.items():
            if any(value in values[:place] for place, value in enumerate(values)):
                raise ConfigError(explain(f"{key}.{setting}", values, "each value once", "leave the double out"))
        for settings in tune.settings(arm):
            comparison.arm(arm, 0, settings)


def _check_shared_choices(tune: TuneSection, recipes: Mapping[str, Recipe]) -> None:
    for arm, source in tune.same_as.items():
        key = f"tune.same_as.{arm}"
        if arm not in recipes:
            raise ConfigError(explain(key, arm, "an arm", did_you_mean(arm, recipes)))
        if source not in tune.grids:
            raise ConfigError(explain(key, source, "an arm with a grid", did_you_mean(source, tune.grids)))
        if arm in tune.grids and source in tune.same_as:
            advice = f"tune.same_as.{arm}={tune.same_as[source]}" if tune.same_as[source] != arm else "leave it out"
            raise ConfigError(explain(key, source, "an arm whose trials wait for no other's", advice))
