"""What a recipe leaves open, written out: a run is known by what ran, and a default may change."""

from __future__ import annotations

from collections.abc import Sequence

from qat_vsam.config import Recipe
from qat_vsam.errors import ConfigError, explain
from qat_vsam.models import import_function, is_user_function, model_info
from qat_vsam.recipes.optimizers import resolve_optimizer


def resolve(recipe: Recipe) -> Recipe:
    """The recipe with every default written out that is decided when it runs.

    These are the options of its optimizer, the draw of its data, and the constants that images are normalised by. Left
    open are `threads` and `train.compile_quantizers`, which change no mathematics: the result says what was used. A
    resolved recipe resolves to itself.

    Raises:
        InputError: an unknown model, an option that the optimizer does not have, or a trained network of which nobody
            tells how its images were normalised.

    Example:
        >>> from qat_vsam.config import recipe_from
        >>> recipe = recipe_from({
        ...     "name": "example", "model": {"name": "digits_cnn"}, "data": {"name": "digits"},
        ...     "optimizer": {"name": "periodic_sam"},
        ... })
        >>> resolved = resolve(recipe)
        >>> resolved.data.seed, resolved.optimizer.options["interval"]
        (0, 5)
    """
    mean, std = _normalisation(recipe)
    model = {"mean": [float(value) for value in mean], "std": [float(value) for value in std]}
    return recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update=model),
            "data": recipe.data.model_copy(update={"seed": recipe.data.seed or 0}),
            "optimizer": resolve_optimizer(recipe.optimizer, recipe.seed),
        }
    )


def _normalisation(recipe: Recipe) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and deviation by the recipe, else by the model, else by the function that gives the data.

    A network of the user's that is trained from the start may see images as they are; one that is trained already must
    see them as it did then.
    """
    info, given = model_info(recipe.model.name), recipe.model
    if (given.mean and given.std) or info.told:
        return given.mean or info.mean, given.std or info.std
    if is_user_function(recipe.data.name):
        function = import_function(recipe.data.name, key="data")
        if hasattr(function, "mean") and hasattr(function, "std"):
            return given.mean or tuple(function.mean), given.std or tuple(function.std)
    if given.checkpoint is not None or recipe.train.epochs == 0:
        missing = "model.std" if given.mean else "model.mean"
        rule = f"what the images of {recipe.model.name} were normalised by"
        advice = "write model.mean=[...] and model.std=[...], 0 and 1 for images in [0, 1], or give the function both"
        raise ConfigError(explain(missing, "nothing", rule, advice))
    return given.mean or info.mean, given.std or info.std
