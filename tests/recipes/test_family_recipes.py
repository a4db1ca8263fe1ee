"""Each member of the family trains a recipe by its name alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from qat_vsam import config
from qat_vsam.optim import FAMILY
from qat_vsam.recipes import run_recipe

REQUIRED = {"random_count_sam": {"count": 5}}


@pytest.mark.parametrize("name", FAMILY)
def test_every_member_trains_the_digits(tmp_path: Path, small_recipe: Callable[..., config.Recipe], name: str) -> None:
    optimizer = {"name": name, "lr": 0.1, **REQUIRED.get(name, {})}
    result = run_recipe(small_recipe(optimizer=optimizer, train={"epochs": 3}), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train_loss"] for line in lines if line["kind"] == "epoch"]

    assert result["cost"]["steps"] == 15
    assert losses[-1] < losses[0]
