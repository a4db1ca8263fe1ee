"""A recipe names how the first step sizes are found."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qat_vsam import ConfigError, calibrate, config, prepare
from qat_vsam.quant import quant_layers
from qat_vsam.recipes import assemble

CALIBRATIONS = ["mse", "lsq", "torchao-minmax", "torchao-mse"]


def step_sizes(model: torch.nn.Module) -> list[torch.Tensor]:
    return [layer.input_quantizer.step().detach() for _, layer in quant_layers(model) if layer.input_quantizer]


def steps_of(recipe: config.Recipe) -> list[torch.Tensor]:
    data = assemble.dataset(recipe, None)
    model = assemble.float_model(recipe, None)
    assemble.quantize_model(recipe, model, assemble.loaders(recipe, data).calibration)
    return step_sizes(model)


def test_each_calibration_of_a_recipe_is_that_of_the_library(small_recipe: Callable[..., config.Recipe]) -> None:
    found = []
    for name in CALIBRATIONS:
        if name.startswith("torchao"):
            pytest.importorskip("torchao", reason="torchao is not installed")
        recipe = small_recipe(quant={"calibration": name})
        model = assemble.float_model(recipe, None)
        spec = assemble.quant_spec(recipe)
        assert spec is not None
        prepare(model, spec)
        calibrate(model, assemble.loaders(recipe, assemble.dataset(recipe, None)).calibration, method=name)  # type: ignore[arg-type]
        found.append(steps_of(recipe))
        assert all(map(torch.equal, found[-1], step_sizes(model)))
    assert len({tuple(step.item() for step in steps) for steps in found}) == len(CALIBRATIONS)


def test_the_one_line_job_takes_it_too(tmp_path: Path, command_line: Callable[..., Any]) -> None:
    pytest.importorskip("torchao", reason="torchao is not installed")
    folder = tmp_path / "run"
    job = ["quantize", "digits_cnn", "--data", "digits", "--bits", "w4a8", "--out", folder]
    code, _, _ = command_line(*job, "quant.calibration=torchao-mse")
    assert code == 0
    assert "calibration: torchao-mse" in (folder / "recipe.yaml").read_text()


@pytest.mark.parametrize(
    ("quant", "message"),
    [
        ({"method": "minmax"}, r"quant\.weight: method: got minmax; expected a method that keeps its step size"),
        ({"balanced": True}, r"quant\.weight: balanced: got True"),
        ({"method": "lsq_plus", "calibration": "torchao-mse"}, r"quant\.activation: method: got lsq_plus"),
        ({"overrides": {"conv2": "w1a8"}}, r"quant\.weight: bits: got 1"),
    ],
)
def test_what_no_observer_can_calibrate_is_said_before_any_data_is_read(
    small_recipe: Callable[..., config.Recipe], quant: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        assemble.check_names(small_recipe(quant={"calibration": "torchao-minmax"} | quant))
    assemble.check_names(small_recipe(quant=quant | {"calibration": "mse"}))


def test_an_unknown_calibration_is_refused_with_the_nearest(small_recipe: Callable[..., config.Recipe]) -> None:
    with pytest.raises(ConfigError, match=r"quant\.calibration: got 'torchao-minmx'; .*did you mean torchao-minmax"):
        small_recipe(quant={"calibration": "torchao-minmx"})


def test_a_recipe_corrects_the_channels_of_its_network_if_asked(small_recipe: Callable[..., config.Recipe]) -> None:
    def prepared(correct: bool) -> tuple[torch.nn.Module, torch.nn.Module, torch.Tensor]:
        recipe = small_recipe(quant={"bits": "w2a2", "correct_bias": correct})
        model = assemble.float_model(recipe, None)
        calibration = assemble.loaders(recipe, assemble.dataset(recipe, None)).calibration
        x = torch.cat([images for images, _ in calibration])
        in_float = copy.deepcopy(model)
        assemble.quantize_model(recipe, model, calibration)
        return model.eval(), in_float.eval(), x

    errors = []
    for correct in (False, True):
        model, in_float, x = prepared(correct)
        errors.append((model(x).mean(0) - in_float(x).mean(0)).abs().max().item())
    assert errors[1] < 0.1 * errors[0]
