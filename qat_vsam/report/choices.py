"""How the settings of a comparison were chosen: what was tried, what won on validation images, what is odd about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from qat_vsam.errors import ConfigError, InputError, explain
from qat_vsam.recipe_file import read_recipe_file
from qat_vsam.report.schema import Count, Fraction

TUNED = "tuned.yaml"


@dataclass(frozen=True)
class Choice:
    """How one arm came to its settings.

    Attributes:
        arm: its name.
        grid: the values tried of each dotted key; empty for an arm that shares another's choice.
        chosen: the settings of best mean validation accuracy, with those that they were tried over.
        same_as: the arm whose choice it shares, or tried its grid over; or None.
        trials: how many settings were tried.
        seeds: how many runs each was tried in.
        validation_accuracy: mean of the chosen settings, a fraction; None for a shared choice.
        diverged: runs of all its trials whose loss became NaN or infinite.
    """

    arm: str
    grid: dict[str, list[Any]]
    chosen: dict[str, Any]
    same_as: str | None
    trials: int
    seeds: int
    validation_accuracy: float | None
    diverged: int

    @property
    def at_end(self) -> tuple[str, ...]:
        """The keys whose chosen value is the least or the greatest of several numbers: a better one may lie beyond."""
        return tuple(key for key, values in self.grid.items() if _at_end(self.chosen.get(key), values))


class _Trial(BaseModel):
    settings: dict[str, Any]
    validation_accuracy: Fraction
    diverged: Count = 0


class _Arm(BaseModel):
    grid: dict[str, list[Any]] | None = None
    trials: list[_Trial] | None = None
    same_as: str | None = None
    chosen: dict[str, Any]


class _File(BaseModel):
    seeds: list[int]
    arms: dict[str, _Arm]


def read_choices(roots: Sequence[Path]) -> tuple[Choice, ...]:
    """The choices kept in the comparisons' `tuned.yaml`, in their order.

    Raises:
        InputError: a file is broken.
    """
    return tuple(
        _choice(arm, content, len(file.seeds))
        for root in roots
        if (root / TUNED).is_file()
        for file in (_read(root / TUNED),)
        for arm, content in file.arms.items()
    )


def fairness(choices: Sequence[Choice]) -> str:
    """Whether all tuned arms had as many trials as one another, said plainly."""
    counts: dict[int, list[str]] = {}
    for choice in choices:
        if choice.grid:
            counts.setdefault(choice.trials, []).append(choice.arm)
    if len(counts) == 1:
        ((trials, arms),) = counts.items()
        return f"Equal numbers of trials: each of the {len(arms)} tuned arms had {trials} settings to choose from."
    parts = [f"{trials} for {', '.join(arms)}" for trials, arms in sorted(counts.items())]
    return f"UNEQUAL numbers of trials, which favours the arms that had more: {'; '.join(parts)}."


def _read(path: Path) -> _File:
    try:
        return _File.model_validate(read_recipe_file(path))
    except ConfigError as error:
        raise InputError(str(error)) from error
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise InputError(
            explain(f"{path}: {key}", problem["msg"], "what the comparison wrote", "run the comparison again")
        ) from error


def _choice(arm: str, content: _Arm, seeds: int) -> Choice:
    trials = content.trials or []
    grid = content.grid or {}
    own = {key: value for key, value in content.chosen.items() if key in grid}
    best = [trial.validation_accuracy for trial in trials if trial.settings == own]
    return Choice(
        arm=arm,
        grid=grid,
        chosen=content.chosen,
        same_as=content.same_as,
        trials=len(trials),
        seeds=seeds,
        validation_accuracy=best[0] if best else None,
        diverged=sum(trial.diverged for trial in trials),
    )


def _at_end(chosen: Any, values: Sequence[Any]) -> bool:
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    return len(numbers) > 1 and chosen in (min(numbers), max(numbers))
