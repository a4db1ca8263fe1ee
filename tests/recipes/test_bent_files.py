"""A run folder whose files were bent after the run is refused by every reader, in one line that names the file."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qat_vsam import config
from qat_vsam.errors import CheckpointError, QatVsamError
from qat_vsam.recipes import load_run, read_result, run_recipe
from qat_vsam.recipes.study import StudyFolder
from qat_vsam.train import CheckpointFolder

Build = Callable[..., config.Recipe]
FILES = ["result.json", "weights.pt", "metrics.jsonl", "environment.json", "baseline.json", "recipe.yaml"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    content = {
        "name": "small",
        "model": {"name": "digits_cnn", "options": {"width": 4}},
        "data": {"name": "digits", "train_size": 100, "batch_size": 20},
        "quant": {"bits": "w4a4", "calibration_images": 100},
        "optimizer": {"name": "sgd", "lr": 0.05},
        "train": {"epochs": 1, "log_every": 1},
    }
    run_recipe(config.recipe_from(content), folder)
    return folder


def bend(path: Path, data: bytes, draw: random.Random, cut: bool) -> None:
    if cut:
        path.write_bytes(data[: draw.randrange(len(data))])
        return
    bent = bytearray(data)
    bent[draw.randrange(len(bent))] ^= 1 << draw.randrange(8)
    path.write_bytes(bent)


@pytest.mark.parametrize("name", [*FILES, "manifest.sha256"])
def test_no_flip_and_no_cut_of_a_finished_run_is_used_in_silence(finished: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    data, draw = (folder / name).read_bytes(), random.Random(0)
    for cut in [False] * 300 + [True] * 50:
        bend(folder / name, data, draw, cut)
        with pytest.raises(CheckpointError):
            read_result(folder)
    with pytest.raises(CheckpointError):
        load_run(folder)
    with StudyFolder(tmp_path / "study") as study, pytest.raises(CheckpointError):
        study.add([_run(folder)])


@pytest.mark.parametrize("name", ["environment.json", "baseline.json"])
def test_a_run_that_goes_on_refuses_what_was_bent_meanwhile(finished: Path, tmp_path: Path, name: str) -> None:
    recipe, folder = config.load_recipe(finished / "recipe.yaml"), tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "result.json").unlink()
    data = (folder / name).read_bytes()
    at = data.index(b"sha256") + 12  # a digit of the seal
    (folder / name).write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(QatVsamError, match=name):
        run_recipe(recipe, folder)


def test_weights_that_were_bent_start_no_other_run(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "metrics.jsonl").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl"):
        run_recipe(config.load_recipe(finished / "recipe.yaml"), tmp_path / "next", start=folder / "weights.pt")


def test_a_finished_run_without_a_manifest_still_counts(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "manifest.sha256").unlink()
    assert read_result(folder)["name"] == "small"
    assert CheckpointFolder(folder / "checkpoints").newest() is not None


def _run(folder: Path) -> Any:
    class Run:
        arm, seed, setting, settings = "small", 0, None, None

    Run.folder = folder  # type: ignore[attr-defined]
    return Run()
