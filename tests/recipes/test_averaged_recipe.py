"""A recipe with `train.ema` tests, keeps and exports the averaged net."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from qat_vsam import config
from qat_vsam.evaluate import accuracy
from qat_vsam.recipes import run_recipe
from qat_vsam.recipes.train import load_run
from qat_vsam.train import CheckpointFolder


def test_a_recipe_with_ema_tests_keeps_and_exports_the_average(
    tmp_path: Path, small_recipe: Callable[..., config.Recipe]
) -> None:
    result = run_recipe(small_recipe(train={"epochs": 4, "ema": 0.8}, export=["packed"]), tmp_path)
    checkpoint = CheckpointFolder(tmp_path / "checkpoints").newest()
    assert checkpoint is not None
    average, last = checkpoint["training"]["average"], checkpoint["training"]["model"]
    kept = torch.load(tmp_path / "weights.pt", weights_only=True)

    assert result["ema"] == 0.8
    assert all(torch.equal(kept[name], average[name]) for name in average)
    assert any(not torch.equal(kept[name], last[name]) for name in last)
    _, model, loaders = load_run(tmp_path)
    assert result["accuracy"]["test"] == accuracy(model, loaders.test).value
    assert result["accuracy"]["validation"] == accuracy(model, loaders.validation).value
    assert result["exports"][0]["test_accuracy"] == result["accuracy"]["test"]
    assert result["exports"][0]["proof"]["passed"]


def test_the_result_tells_what_was_done_to_the_data(tmp_path: Path, small_recipe: Callable[..., config.Recipe]) -> None:
    result = run_recipe(small_recipe(data={"label_noise": 0.3, "augment": "shift"}, train={"epochs": 1}), tmp_path)
    assert result["data"] == {
        "name": "digits", "augment": "shift", "label_noise": 0.3, "options": {}, "seed": 0,
        "train": 100, "validation": 500, "test": 997,
    }  # fmt: skip
    assert result["ema"] is None
