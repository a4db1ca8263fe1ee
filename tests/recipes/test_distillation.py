"""`train.distill`: the quantized net learns its float copy's answers and never looks at a label."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from qat_vsam import config
from qat_vsam.recipes import run_recipe
from qat_vsam.recipes.assemble import float_model
from qat_vsam.recipes.train import load_run
from qat_vsam.train import kl_divergence


@pytest.fixture
def checkpoint(tmp_path: Path, small_recipe: Callable[..., config.Recipe]) -> Path:
    run_recipe(small_recipe(quant=None, train={"epochs": 3}), tmp_path / "float")
    return tmp_path / "float" / "weights.pt"


@pytest.mark.parametrize("loss", ["kl", "mse"])
def test_labels_change_nothing_and_the_answers_come_nearer(
    loss: str, tmp_path: Path, checkpoint: Path, small_recipe: Callable[..., config.Recipe]
) -> None:
    def run(name: str, noise: float, **train: object) -> Path:
        recipe = small_recipe(
            model={"checkpoint": str(checkpoint)},
            data={"label_noise": noise},
            quant={"bits": "w2a2"},
            train={"distill": loss, **train},
        )
        run_recipe(recipe, tmp_path / name)
        return tmp_path / name

    true, wrong = run("true", 0.0, epochs=6), run("wrong", 0.9, epochs=6)
    kept, again = (torch.load(folder / "weights.pt", weights_only=True) for folder in (true, wrong))
    assert all(torch.equal(kept[key], again[key]) for key in kept)

    def distance(folder: Path) -> float:
        recipe, model, loaders = load_run(folder)
        teacher = float_model(recipe, None).eval()
        x, _ = next(iter(loaders.test))
        with torch.no_grad():
            return kl_divergence(model(x), teacher(x)).item()

    assert distance(true) < 0.8 * distance(run("calibrated", 0.0, epochs=0))
