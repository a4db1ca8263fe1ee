"""How the settings of a comparison were chosen: what was tried, what won on validation images, what is odd about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, ValidationError

from qat_vsam.errors import ConfigError, InputError, explain
from qat_vsam.recipe_file import read_recipe_file
from qat_vsam.report.schema import Count, Fraction

TUNED = "tuned.yaml"
# what every arm has, so that trials of it must not be one arm's alone
_SHARED = {"optimizer.lr": "learning rate", "optimizer.weight_decay": "weight decay"}


@dataclass(frozen=True)
class Tried:
    """One setting that was tried: its mean validation accuracy, a fraction, and how many of its runs diverged."""

    settings: dict[str, Any]
    validation_accuracy: float
    diverged: int


@dataclass(frozen=True)
class Choice:
    """How one arm came to its settings.

    Attributes:
        arm: its name.
        grid: the values tried of each dotted key; empty for an arm that shares another's choice.
        chosen: the settings of best mean validation accuracy, with those that they were tried over.
        same_as: the arm whose choice it shares, or tried its grid over; or None.
        tried: the settings that were tried.
        seeds: how many runs each was tried in.
    """

    arm: str
    grid: dict[str, list[Any]]
    chosen: dict[str, Any]
    same_as: str | None
    tried: tuple[Tried, ...]
    seeds: int

    @property
    def trials(self) -> int:
        """How many settings were tried."""
        return len(self.tried)

    @property
    def own(self) -> dict[str, Any]:
        """What was chosen of its own grid."""
        return {key: value for key, value in self.chosen.items() if key in self.grid}

    @property
    def validation_accuracy(self) -> float | None:
        """Mean of the chosen settings, a fraction; None for a shared choice."""
        return next((trial.validation_accuracy for trial in self.tried if trial.settings == self.own), None)

    @property
    def diverged(self) -> int:
        """Runs of all its trials whose loss became NaN or infinite."""
        return sum(trial.diverged for trial in self.tried)

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


def fairness(choices: Sequence[Choice], arms: Sequence[str]) -> str:
    """Whether the arms had the same chances, said plainly: numbers of trials, trials on top of others, and grids.

    Args:
        choices: of the comparison; "" without any.
        arms: names of all trained arms.
    """
    if not choices:
        return ""
    sentences = [_numbers(choices)]
    known = {choice.arm: choice for choice in choices}
    over = [choice for choice in choices if choice.grid and choice.same_as is not None]
    if over:
        named = _listed(f"{choice.arm} over {choice.same_as}" for choice in over)
        sentences.append(f"Tried on top of what trials had chosen for another arm, and so with more of them: {named}.")
    shared = [choice for choice in choices if not choice.grid]
    if shared:
        named = _listed(f"{choice.arm} as {choice.same_as}" for choice in shared)
        sentences.append(f"No grid of their own, settings as chosen for another arm: {named}.")
    fixed = [arm for arm in arms if arm not in known]
    if fixed:
        sentences.append(f"No trials at all, settings as the recipe says them: {_listed(fixed)}.")
    return " ".join([*sentences, *_shared_grids(known, arms)])


def trials_frame(trials: pd.DataFrame, choices: Sequence[Choice]) -> pd.DataFrame:
    """One row per trial: arm, a column for each setting, seed, validation accuracy, whether it diverged and was chosen.

    Where the trials' own results are not at hand, a row is the mean over a setting's seeds, and its seed is empty.
    `at_edge` names the keys of a chosen setting that lie at an end of their grid.

    Args:
        trials: `Results.trials`.
        choices: `Results.choices`.
    """
    known = {choice.arm: choice for choice in choices}
    keys = list(dict.fromkeys(key for row in trials["settings"] for key in row))
    keys += [key for choice in choices for key in choice.grid if key not in keys]
    rows = [
        _trial_row(known.get(row["arm"]), **{str(key): value for key, value in row.items()})
        for row in trials.to_dict("records")
    ]
    recorded = set(trials["arm"])
    rows += [
        _trial_row(choice, choice.arm, trial.settings, trial.validation_accuracy, trial.diverged > 0)
        for choice in choices
        if choice.arm not in recorded
        for trial in choice.tried
    ]
    columns = ["arm", *dict.fromkeys(keys), "seed", "validation_accuracy", "diverged", "chosen", "at_edge"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.assign(seed=frame["seed"].astype("Int64"))


def _trial_row(
    choice: Choice | None,
    arm: str,
    settings: Mapping[str, Any],
    validation_accuracy: float,
    diverged: bool,
    seed: int | None = None,
) -> dict[str, Any]:
    chosen = choice is not None and choice.own == settings
    return {
        "arm": arm,
        **settings,
        "seed": seed,
        "validation_accuracy": validation_accuracy,
        "diverged": bool(diverged),
        "chosen": chosen,
        "at_edge": " ".join(choice.at_end) if choice is not None and chosen else "",
    }


def _numbers(choices: Sequence[Choice]) -> str:
    counts: dict[int, list[str]] = {}
    for choice in choices:
        if choice.grid:
            counts.setdefault(choice.trials, []).append(choice.arm)
    if len(counts) == 1:
        ((trials, arms),) = counts.items()
        return (
            f"Arms with a grid of their own had equal numbers of settings to choose from: {trials} each of {len(arms)}."
        )
    parts = [f"{trials} for {_listed(arms)}" for trials, arms in sorted(counts.items())]
    return f"UNEQUAL numbers of trials, which favours the arms that had more: {'; '.join(parts)}."


def _shared_grids(known: Mapping[str, Choice], arms: Sequence[str]) -> list[str]:
    """For learning rate and weight decay, whether all arms had the same values to choose from."""

    def values(arm: str | None, key: str) -> tuple[Any, ...]:
        choice = None if arm is None else known.get(arm)
        if choice is None:
            return ()
        return tuple(choice.grid[key]) if key in choice.grid else values(choice.same_as, key)

    sentences = []
    for key, name in _SHARED.items():
        grids: dict[tuple[Any, ...], list[str]] = {}
        for arm in arms:
            grids.setdefault(values(arm, key), []).append(arm)
        if set(grids) == {()}:
            sentences.append(f"The {name} was tried for no arm.")
        elif len(grids) == 1:
            sentences.append(f"All arms share the grid of the {name}.")
        else:
            parts = [
                f"{'none' if not grid else ', '.join(map(str, grid))} for {_listed(names)}"
                for grid, names in grids.items()
            ]
            sentences.append(f"The arms do NOT share a grid of the {name}: {'; '.join(parts)}.")
    return sentences


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


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
    return Choice(
        arm=arm,
        grid=content.grid or {},
        chosen=content.chosen,
        same_as=content.same_as,
        tried=tuple(Tried(trial.settings, trial.validation_accuracy, trial.diverged) for trial in content.trials or []),
        seeds=seeds,
    )


def _at_end(chosen: Any, values: Sequence[Any]) -> bool:
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    return len(numbers) > 1 and chosen in (min(numbers), max(numbers))
