"""What a recipe leaves open, written out: a run is known by what ran, and a default may change."""

from __future__ import annotations

from qat_vsam.config import Recipe
from qat_vsam.models import model_info
from qat_vsam.recipes.optimizers import resolve_optimizer


def resolve(recipe: Recipe) -> Recipe:
    """The recipe with every default written out that is decided when it runs.

    These are the options of its optimizer, the draw of its data, and the constants that images are normalised by. Left
    open are `threads` and `train.compile_quantizers`, which change no mathematics: the result says what was used. A
    resolved recipe resolves to itself.

    Raises:
        InputError: an unknown model, or an option that the optimizer does not have.

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
    info = model_info(recipe.model.name)
    mean, std = recipe.model.mean or info.mean, recipe.model.std or info.std
    model = {"mean": [float(value) for value in mean], "std": [float(value) for value in std]}
    return recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update=model),
            "data": recipe.data.model_copy(update={"seed": recipe.data.seed or 0}),
            "optimizer": resolve_optimizer(recipe.optimizer, recipe.seed),
        }
    )
