"""Small recipes on the bundled digits, and the command line called in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qat_vsam import cli, config

SMALL = {
    "name": "small",
    "model": {"name": "digits_cnn", "options": {"width": 4}},
    "data": {"name": "digits", "train_size": 100, "batch_size": 20},
    "quant": {"bits": "w4a4", "calibration_images": 100},
    "optimizer": {"name": "vsam", "lr": 0.05, "rho": 0.1},
    "train": {"epochs": 2, "log_every": 1},
}


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Exactness is promised for one thread count."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small_recipe() -> Callable[..., config.Recipe]:
    """Builds a recipe of a few steps; keyword arguments are merged over it."""
    return lambda **changes: config.recipe_from(config.merge(SMALL, changes))


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Calls `qat-vsam` with arguments; returns exit code, standard output and standard error."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["qat-vsam", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        captured = capsys.readouterr()
        return int(left.value.code or 0), captured.out, captured.err

    return call
