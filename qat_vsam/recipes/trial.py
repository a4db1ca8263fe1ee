"""One trial of a setting: trained as a run of its arm is, and measured on validation images alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from qat_vsam.config import Recipe, dump_yaml, fingerprint
from qat_vsam.errors import NonFiniteError
from qat_vsam.evaluate import accuracy
from qat_vsam.recipes import assemble
from qat_vsam.recipes.checks import check_places
from qat_vsam.recipes.events import Listener
from qat_vsam.recipes.resolve import resolve
from qat_vsam.recipes.result import SCHEMA, read_result, refuse_old_schema
from qat_vsam.recipes.train import train_model
from qat_vsam.train import RunFolder


def run_trial(recipe: Recipe, folder: str | Path, *, data_root: Path | None = None) -> dict[str, Any]:
    """Train one recipe, or go on with it; no test image is shown to the model.

    A setting under which the loss becomes NaN or infinite is a bad setting and no reason to stop a study: it has
    diverged, and its accuracy counts as zero.

    Args:
        recipe: an arm with a setting put over it.
        folder: the run folder.
        data_root: see `assemble.data_root`.

    Returns:
        The content of the trial's `result.json`: `validation_accuracy`, `diverged` and `recipe_sha256`.

    Raises:
        InputError: something in the recipe cannot be; nothing has been trained.
        RunFolderError: the folder is in use, or belongs to another recipe.
    """
    assemble.check_names(recipe)
    recipe = resolve(recipe)
    root = assemble.data_root(recipe, data_root)
    check_places(recipe, root)
    refuse_old_schema(Path(folder))
    with RunFolder(folder, dump_yaml(recipe)) as run:
        if run.finished:
            return read_result(run.path)
        if recipe.threads is not None:
            torch.set_num_threads(recipe.threads)
        loaders = assemble.loaders(recipe, assemble.dataset(recipe, root))
        model = assemble.float_model(recipe, root)
        if recipe.quant is not None:
            assemble.quantize_model(recipe, model, loaders.calibration)
        try:
            trained = train_model(recipe, model, loaders, run, Listener())
            value = None if trained is None else trained.fit.validation_accuracy
            if value is None:
                value = accuracy(model, loaders.validation, device=recipe.device).value
            diverged = False
        except NonFiniteError:
            value, diverged = 0.0, True
        result = {
            "schema": SCHEMA,
            "validation_accuracy": value,
            "diverged": diverged,
            "recipe_sha256": fingerprint(recipe),
        }
        run.write_result(result)
        return result
