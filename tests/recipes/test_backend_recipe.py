"""A recipe with `quant.backend: brevitas` trains, tests, exports and is read again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qat_vsam import ConfigError, config, verify
from qat_vsam.evaluate import accuracy
from qat_vsam.quant import quant_layers
from qat_vsam.quant.backends.brevitas import is_brevitas
from qat_vsam.recipes import assemble, run_recipe
from qat_vsam.recipes.train import load_run

pytest.importorskip("brevitas", reason="brevitas is not installed")

BREVITAS = {"backend": "brevitas"}


def test_a_recipe_of_brevitas_layers_runs_from_end_to_end(
    tmp_path: Path, small_recipe: Callable[..., config.Recipe]
) -> None:
    for name in ("qonnx", "onnxoptimizer"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    train = {"epochs": 12}
    common = {"data": {"train_size": 300}, "optimizer": {"lr": 0.1}, "train": train}
    result = run_recipe(small_recipe(quant=BREVITAS, export=["qonnx"], **common), tmp_path / "brevitas")
    own = run_recipe(small_recipe(**common), tmp_path / "own")
    assert result["size"] == own["size"]
    assert result["accuracy"]["calibrated"] == own["accuracy"]["calibrated"]
    assert result["accuracy"]["test"] > 0.5

    _, model, loaders = load_run(tmp_path / "brevitas")
    assert is_brevitas(model)
    assert not list(quant_layers(model))
    assert accuracy(model, loaders.test).value == result["accuracy"]["test"]
    export = result["exports"][0]
    assert export["proof"]["passed"]
    assert export["proof"]["inputs"] == 1000
    assert abs(export["test_accuracy"] - result["accuracy"]["test"]) <= 0.001
    assert verify(tmp_path / "brevitas" / export["path"]).passed


def test_a_run_of_brevitas_layers_that_was_stopped_goes_on_as_if_it_had_not_been(
    tmp_path: Path, small_recipe: Callable[..., config.Recipe]
) -> None:
    recipe = small_recipe(quant=BREVITAS, train={"checkpoint_every": 1})
    run_recipe(recipe, tmp_path / "whole")

    class StoppedError(Exception):
        pass

    class Listener:
        steps = 0

        def say(self, text: str) -> None:
            pass

        def progress(self, event: Any) -> None:
            self.steps += 1
            if self.steps == 6:
                raise StoppedError

    with pytest.raises(StoppedError):
        run_recipe(recipe, tmp_path / "stopped", listener=Listener())  # type: ignore[arg-type]
    run_recipe(recipe, tmp_path / "stopped")
    kept = [torch.load(tmp_path / run / "weights.pt", weights_only=True) for run in ("whole", "stopped")]
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"quant": BREVITAS | {"method": "pact"}}, "weight.method"),
        ({"quant": BREVITAS, "export": ["onnx", "qonnx"]}, "export"),
        ({"quant": BREVITAS, "train": {"compile_quantizers": True}}, "train.compile_quantizers"),
    ],
)
def test_what_the_backend_cannot_do_is_said_before_any_data_is_read(
    small_recipe: Callable[..., config.Recipe], changes: dict[str, Any], key: str
) -> None:
    with pytest.raises(ConfigError, match=key):
        assemble.check_names(small_recipe(**changes))
