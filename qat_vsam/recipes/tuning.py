"""The choice of settings in a comparison: trials, each arm's best by validation accuracy, and the file that keeps it.

A choice is written to `tuned.yaml` as soon as an arm's trials are done and stays as it is when the comparison goes on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from qat_vsam.config import Comparison, Section, dump_yaml, read_recipe_file
from qat_vsam.recipes.cell import Cell
from qat_vsam.recipes.events import Listener
from qat_vsam.recipes.resolve import resolve
from qat_vsam.recipes.study import StudyFolder
from qat_vsam.train import write_atomic
from qat_vsam.validation import validate

FILE = "tuned.yaml"
FOLDER = "tune"
# above every seed of a final run, of which there are at most 1000
FIRST_SEED = 1000


class TriedSetting(Section):
    """One value of an arm's grid, with its mean validation accuracy over `seeds`."""

    settings: dict[str, Any]
    validation_accuracy: float
    diverged: int


class ArmChoice(Section):
    """What was tried for an arm, over the choice of the arm `same_as` if there is one, and all that is chosen now."""

    grid: dict[str, list[Any]] | None = None
    trials: list[TriedSetting] | None = None
    same_as: str | None = None
    chosen: dict[str, Any]


class TunedFile(Section):
    """The content of `tuned.yaml`; `seeds` are those of the trials."""

    schema_version: Literal[1] = 1
    seeds: list[int]
    arms: dict[str, ArmChoice]


class Tuning:
    """The trials of a comparison and the choices that follow from them.

    Args:
        comparison: with or without a `tune` section.
        folder: of the comparison; trials go to `folder/tune/ARM/SETTING/seed-K`.
        study: where trials may be finished already, and where `tuned.yaml` is kept; None: the folder keeps it.

    Attributes:
        total: how many trials are needed, or were made; some of them become known only later.

    Raises:
        ConfigError: `tuned.yaml` is not what was written there.
    """

    def __init__(self, comparison: Comparison, folder: Path, study: StudyFolder | None = None) -> None:
        self._comparison = comparison
        self._folder = folder
        self._study = study
        self._file = (folder if study is None else study.path) / FILE
        self._tune = comparison.tune
        self._cells: dict[str, list[Cell]] = {}
        self._written = self._read()
        self._choices = self._kept()
        # a choice that is kept needs its trials no more, but those that are there are counted as done
        kept = [cell for arm in self._choices for cell in self._trials_of(arm)]
        self.total = sum(cell.finished for cell in kept)
        if self._tune is not None:
            self.total += sum(self._tune.trials(arm) for arm in self._grids if arm not in self._choices)

    def known(self) -> list[Cell]:
        """The trials that became known since the last call, arm by arm: some wait for the choice of another arm."""
        found: list[Cell] = []
        for arm in self._grids:
            if arm in self._cells or self._beneath(arm) is None:
                continue
            cells = self._trials_of(arm)
            self._cells[arm] = cells
            found += [cell for cell in cells if arm not in self._choices or cell.finished]
        return found

    def settings(self, arm: str) -> dict[str, Any] | None:
        """What to put over an arm, by dotted key; None while its trials are not done."""
        source = None if self._tune is None else self._tune.source(arm)
        if source is None:
            return {}
        return self._choices[source].chosen if source in self._choices else None

    def settle(self, listener: Listener) -> None:
        """Choose for every arm whose trials are done since the last call, and keep the choice."""
        for arm, cells in self._cells.items():
            if arm in self._choices or not all(cell.finished for cell in cells):
                continue
            trials = self._measured(arm)
            # of equals max keeps the first
            best = max(trials, key=lambda trial: trial.validation_accuracy)
            self._choices[arm] = ArmChoice(
                grid=self._grids[arm],
                trials=trials,
                same_as=self._same_as.get(arm),
                chosen=self._over_beneath(arm, best.settings),
            )
            listener.say(
                f"{arm}: {setting_name(best.settings)} chosen, {best.validation_accuracy:.2%} of the validation images"
            )
        self._write()

    @property
    def _grids(self) -> dict[str, dict[str, list[Any]]]:
        return {} if self._tune is None else self._tune.grids

    @property
    def _same_as(self) -> dict[str, str]:
        return {} if self._tune is None else self._tune.same_as

    @property
    def _seeds(self) -> list[int]:
        """Of a trial; none of them is a final run's."""
        return [] if self._tune is None else list(range(FIRST_SEED, FIRST_SEED + self._tune.seeds))

    def _settings_of(self, arm: str) -> list[dict[str, Any]]:
        return [] if self._tune is None else self._tune.settings(arm)

    def _beneath(self, arm: str) -> dict[str, Any] | None:
        """What an arm's trials are put over; None while that is not chosen."""
        source = self._same_as.get(arm)
        if source is None:
            return {}
        return self._choices[source].chosen if source in self._choices else None

    def _over_beneath(self, arm: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {**(self._beneath(arm) or {}), **settings}

    def _trials_of(self, arm: str) -> list[Cell]:
        cells = []
        for settings in self._settings_of(arm):
            name = setting_name(settings)
            for seed in self._seeds:
                recipe = self._comparison.arm(arm, seed, self._over_beneath(arm, settings))
                # what an arm is called in the report is no part of what a trial tells
                recipe = resolve(recipe.model_copy(update={"label": None}))
                folder = self._folder / FOLDER / arm / name / f"seed-{seed}"
                cells.append(Cell(arm, seed, recipe, folder, setting=name, settings=settings, study=self._study))
        return cells

    def _measured(self, arm: str) -> list[TriedSetting]:
        results: dict[str | None, list[dict[str, Any]]] = {}
        for cell in self._cells[arm]:
            results.setdefault(cell.setting, []).append(cell.result())
        trials = []
        for settings in self._settings_of(arm):
            own = results[setting_name(settings)]
            mean = fmean(float(result["validation_accuracy"]) for result in own)
            diverged = sum(bool(result["diverged"]) for result in own)
            trials.append(TriedSetting(settings=settings, validation_accuracy=mean, diverged=diverged))
        return trials

    def _read(self) -> TunedFile | None:
        path = self._file
        return validate(TunedFile, read_recipe_file(path), prefix=(str(path),)) if path.exists() else None

    def _kept(self) -> dict[str, ArmChoice]:
        """The choices of an earlier call that were made among the very values of today, over the very choices."""
        if self._written is None or self._written.seeds != self._seeds:
            return {}
        known = self._written.arms
        same = {
            arm: known[arm]
            for arm, grid in self._grids.items()
            if arm in known and known[arm].grid == grid and known[arm].same_as == self._same_as.get(arm)
        }
        return {arm: choice for arm, choice in same.items() if _stands_on(choice, same)}

    def _write(self) -> None:
        """Keep the choices; a file of an earlier comparison's choices does not outlive them."""
        if self._tune is None:
            self._file.unlink(missing_ok=True)
            return
        shared = {
            arm: ArmChoice(same_as=source, chosen=self._choices[source].chosen)
            for arm, source in self._tune.same_as.items()
            if source in self._choices and arm not in self._grids
        }
        content = TunedFile(seeds=self._seeds, arms=self._choices | shared)
        if content != self._written:
            write_atomic(self._file, dump_yaml(content).encode())
            self._written = content


def _stands_on(choice: ArmChoice, choices: Mapping[str, ArmChoice]) -> bool:
    """Whether what a choice was made over is still what is chosen there."""
    if choice.same_as is None:
        return True
    if choice.same_as not in choices:
        return False
    own = choice.grid or {}
    beneath = {key: value for key, value in choices[choice.same_as].chosen.items() if key not in own}
    return beneath == {key: value for key, value in choice.chosen.items() if key not in own}


def setting_name(settings: Mapping[str, Any]) -> str:
    """A setting as the name of a folder.

    Example:
        >>> setting_name({"optimizer.lr": 0.1, "optimizer.weight_decay": 5e-4})
        'optimizer.lr=0.1,optimizer.weight_decay=0.0005'
    """
    text = ",".join(f"{key}={value}" for key, value in settings.items())
    return re.sub(r"[^A-Za-z0-9._=+,-]+", "-", text)
