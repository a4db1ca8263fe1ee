"""What cannot be is found before data are read, by `validate` and by the job, and the corrected command runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qat_vsam.models import build_model
from qat_vsam.recipes import assemble

Call = Callable[..., tuple[int, str, str]]

RECIPE = """
name: small
model: {name: digits_cnn, options: {width: 4}}
data: {name: digits, train_size: 100, batch_size: 20}
quant: {bits: w4a4, calibration_images: 100}
optimizer: {name: sgd, lr: 0.05}
train: {epochs: 1}
"""
WRONG = [
    ("data.name=digit", "did you mean digits?"),
    ("data.options.size=8", "unknown option"),
    ("data.name=cifar10", "QAT_VSAM_DATA"),
    ("data.name=image_folder", "data.options.size"),
    ("data.name=no.such:function", "no.such"),
    ("model.checkpoint=gone.pt", "model.checkpoint: got gone.pt"),
    ("model.mean=[.inf]", "model.mean"),
    ("model.mean=[]", "model.mean"),
    ("model.mean=[0.1,0.2]", "each of 1 channels"),
    ("model.std=[]", "model.std"),
    ("device=meta", "device"),
    ("quant.keep=[lin]", "lin"),
]


@pytest.fixture
def recipe_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("QAT_VSAM_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(RECIPE)
    return tmp_path / "small.yaml"


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*arguments: Any) -> None:
        raise AssertionError("data were read")

    monkeypatch.setattr(assemble, "dataset", read)


@pytest.mark.parametrize(("override", "expected"), WRONG)
def test_validate_and_train_refuse_the_same_before_data_are_read(
    command_line: Call, recipe_file: Path, no_data: None, override: str, expected: str
) -> None:
    for command in ("validate", "train"):
        code, out, err = command_line(command, recipe_file, override)
        assert code in (1, 2), (command, out)
        assert expected in err, (command, err)
        assert err.count("\n") == 1


@pytest.mark.parametrize("override", ["data.name=digit", "quant.keep=[lin]", "data.batch_size=500"])
def test_the_corrected_command_runs_in_the_same_folder(
    command_line: Call, recipe_file: Path, tmp_path: Path, override: str
) -> None:
    assert command_line("train", recipe_file, override, "--out", tmp_path / "run")[0] == 2
    code, _, err = command_line("train", recipe_file, "--out", tmp_path / "run")
    assert code == 0, err


def test_a_checkpoint_of_another_model_is_found_before_data_are_read(
    command_line: Call, recipe_file: Path, no_data: None
) -> None:
    torch.save(build_model("digits_cnn", width=8, seed=0).state_dict(), "wrong.pt")
    code, _, err = command_line("train", recipe_file, "model.checkpoint=wrong.pt")
    assert code == 1
    assert "of another shape" in err


def test_a_missing_package_of_an_export_is_found_before_the_training(
    command_line: Call, recipe_file: Path, no_data: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qat_vsam.recipes import checks

    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    for command in ("validate", "train"):
        code, _, err = command_line(command, recipe_file, "export=[qonnx]")
        assert code == 1
        assert "onnxoptimizer: got no such package" in err


def test_one_number_counts_for_all_channels(command_line: Call, recipe_file: Path) -> None:
    code, out, err = command_line("validate", recipe_file, "model.mean=0.5", "model.std=0.25")
    assert code == 0, err
    assert "- 0.25" in out
