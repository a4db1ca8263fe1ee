"""One run of a comparison, and whether what is finished of it was made by today's recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qat_vsam.config import Recipe, fingerprint, read_recipe_file, recipe_from
from qat_vsam.errors import ConfigError, RunFolderError, explain
from qat_vsam.recipes.result import RESULT, WEIGHTS, read_result, refuse_old_schema
from qat_vsam.recipes.study import StudyFolder

MOST_DIFFERENCES = 8


@dataclass(frozen=True)
class Cell:
    """One run of a comparison: an arm with one seed.

    Attributes:
        arm, seed: which.
        recipe: what to do, resolved.
        folder: where.
        start: the weights of another run that it starts from.
        setting: the name of what is tried; None for a run whose test images count.
        settings: what is tried, by dotted key.
        study: where its result may stand already, made on another machine.
        again: whether it is to be made here although the study knows it, because other arms need its weights.
    """

    arm: str
    seed: int
    recipe: Recipe
    folder: Path
    start: Path | None = None
    setting: str | None = None
    settings: Mapping[str, Any] | None = None
    study: StudyFolder | None = None
    again: bool = False

    def __str__(self) -> str:
        tried = "" if self.setting is None else f" {self.setting}"
        return f"{self.arm}{tried} seed {self.seed}"

    @property
    def recorded(self) -> dict[str, Any] | None:
        """Its result in the study, if it is there."""
        return None if self.study is None else self.study.result(self.arm, self.seed, self.setting)

    @property
    def finished(self) -> bool:
        """Whether its result is there and nothing needs its weights."""
        if self.again:
            return (self.folder / RESULT).is_file() and (self.folder / WEIGHTS).is_file()
        return (self.folder / RESULT).is_file() or self.recorded is not None

    @property
    def ready(self) -> bool:
        """Whether the run it starts from has written its weights."""
        return self.start is None or (self.start.is_file() and (self.start.parent / RESULT).is_file())

    def result(self) -> dict[str, Any]:
        """Its result, of the study or of its folder.

        Raises:
            CheckpointError: there is none.
        """
        return self.recorded or read_result(self.folder)


def check_unchanged(cell: Cell) -> None:
    """A finished run counts only for the recipe that it was made with; its label may differ.

    Raises:
        RunFolderError: naming the folder, or the arm in the study, and what differs.
    """
    recorded = cell.recorded
    if recorded is not None:
        if not _made_by(recorded, cell.recipe):
            raise _changed(f"{cell} in {cell.study.path if cell.study else ''}", recorded, cell.recipe)
        return
    if not (cell.folder / RESULT).is_file():
        return
    refuse_old_schema(cell.folder)
    result = read_result(cell.folder)
    if _made_by(result, cell.recipe):
        return
    path = cell.folder / "recipe.yaml"
    try:
        # a key that is newer than the run has its default there
        kept = recipe_from(read_recipe_file(path))
    except ConfigError as error:
        raise RunFolderError(str(error)) from None
    if fingerprint(kept.model_copy(update={"label": cell.recipe.label})) != fingerprint(cell.recipe):
        raise _changed(str(path), result, cell.recipe)


def _made_by(result: Mapping[str, Any], recipe: Recipe) -> bool:
    labelled = recipe.model_copy(update={"label": result.get("label", recipe.label)})
    return result.get("recipe_sha256") in (fingerprint(recipe), fingerprint(labelled))


def _changed(where: str, result: Mapping[str, Any], recipe: Recipe) -> RunFolderError:
    differences = list(_differences(result, recipe))[:MOST_DIFFERENCES]
    told = "".join(f"\n  {line}" for line in differences)
    return RunFolderError(
        explain(
            where,
            "a changed recipe for a run that is finished",
            "the recipe it was made with",
            f"undo the change, choose another folder, or delete this arm's runs{told}",
        )
    )


def _differences(result: Mapping[str, Any], recipe: Recipe) -> Iterator[str]:
    """What of a recipe a result tells otherwise, a line each; a trial's tells nothing of it."""
    if "optimizer_options" not in result:
        return
    then = _told(
        result["precision"], result["epochs"], result["optimizer"], result["optimizer_options"], result["data"]
    )
    name = recipe.optimizer.name if recipe.train.epochs else None
    options = recipe.optimizer.model_dump(mode="json", exclude={"name"})
    today = _told(recipe.precision, recipe.train.epochs, name, options, recipe.data.model_dump(mode="json"))
    for key in dict.fromkeys([*then, *today]):
        if then.get(key, "nothing") != today.get(key, "nothing"):
            yield f"{key}: {then.get(key, 'nothing')} then, {today.get(key, 'nothing')} now"


def _told(
    precision: str, epochs: int, optimizer: str | None, options: Mapping[str, Any], data: Mapping[str, Any]
) -> dict[str, Any]:
    kept = {f"data.{key}": data.get(key) for key in ("name", "augment", "label_noise", "options")}
    own = {f"optimizer.{key}": value for key, value in options.items()}
    return {"precision": precision, "train.epochs": epochs, "optimizer.name": optimizer, **own, **kept}
