"""Promises of the draws of a comparison: each run its own, no test image in any, and no image decoded twice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from qat_vsam import config
from qat_vsam.data import Split, folder
from qat_vsam.recipes import assemble, resolve
from qat_vsam.recipes.compare import grid
from qat_vsam.recipes.tuning import Tuning

GRID = """
name: grid
title: Draws
seeds: 3
recipe:
  model: {name: digits_cnn, options: {width: 4}}
  data: {name: image_folder, train_size: 6, validation_size: 4, batch_size: 2, options: {size: 4}}
  optimizer: {name: sgd}
arms: {float32-sgd: {}, float32-sam: {optimizer: {name: sam}}}
tune: {seeds: 2, grids: {float32-sgd: {optimizer.lr: [0.1, 0.2]}}}
"""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Forty images of two classes, twenty of them to test on, no two alike."""
    root = tmp_path / "images"
    for number in range(40):
        place = root / ("train" if number < 20 else "test") / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), 5 * number, dtype=np.uint8)).save(place / f"{number}.png")
    return root


def values(split: Split) -> set[int]:
    return {int(image.flatten()[0]) for image in split.images}


def test_runs_and_trials_draw_their_own_images_and_decode_each_once(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    decode = folder.decode_images

    def counting(encoded: Sequence[str], names: Sequence[str], **options: object) -> Tensor:
        decoded.extend(names)
        return decode(encoded, names, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(folder, "decode_images", counting)
    (tmp_path / "grid.yaml").write_text(GRID)
    comparison = config.load_comparison(tmp_path / "grid.yaml")
    cells = [*Tuning(comparison, tmp_path).known(), *grid(comparison, tmp_path)]
    draws = {}
    for cell in cells:
        data = assemble.dataset(cell.recipe, images)
        seen = draws.setdefault(cell.seed, (values(data.train), values(data.validation)))
        # arms of one seed, and settings tried with one seed, see the same images
        assert (values(data.train), values(data.validation)) == seen
        assert values(data.test) == set(range(100, 200, 5))
        assert not (seen[0] | seen[1]) & values(data.test)
    assert set(draws) == {0, 1, 2, 1000, 1001}
    assert len({frozenset(train) for train, _ in draws.values()}) > 3
    assert len(decoded) == len(set(decoded))


def test_the_same_draw_is_the_same_object(tmp_path: Path, images: Path) -> None:
    (tmp_path / "grid.yaml").write_text(GRID)
    recipe = resolve(config.load_comparison(tmp_path / "grid.yaml").arm("float32-sgd", 1))
    assert assemble.dataset(recipe, images) is assemble.dataset(recipe, images)
