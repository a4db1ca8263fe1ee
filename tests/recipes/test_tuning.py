"""Promises of the choice of settings: on validation images, by seeds of its own, once, before the runs that count."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qat_vsam import config
from qat_vsam.errors import ConfigError, RunFolderError
from qat_vsam.recipes import Listener, compare, resolve
from qat_vsam.recipes.plan import comparison_plan
from qat_vsam.recipes.trial import run_trial
from qat_vsam.recipes.tuning import Tuning
from qat_vsam.train import RunFolder

GRID = """
name: grid
title: A small grid
seeds: 1
workers: 1
recipe:
  model: {name: digits_cnn, options: {width: 4}}
  data: {name: digits, train_size: 100, validation_size: 100, batch_size: 20}
  optimizer: {name: sgd, lr: 0.05}
  train: {epochs: 1}
arms:
  float32-sgd: {}
  float32-split: {optimizer: {name: split_sgd}}
  float32-sam: {optimizer: {name: sam, rho: 0.1}}
tune:
  seeds: 2
  grids:
    float32-sgd: {optimizer.lr: [1e-6, 0.1, 0.2]}
    float32-sam: {optimizer.rho: [0.05, 0.1], optimizer.lr: [0.05]}
  same_as: {float32-split: float32-sgd}
bench: null
"""


def comparison(tmp_path: Path, *changes: str, text: str = GRID) -> config.Comparison:
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    return config.load_comparison(path, changes)


def write_trials(folder: Path, comparison: config.Comparison, accuracy: Callable[[Any, int], float]) -> Tuning:
    """Trials that were run before, with accuracies made up from setting and seed."""
    tuning = Tuning(comparison, folder)
    for cell in tuning.known():
        with RunFolder(cell.folder, config.dump_yaml(cell.recipe)) as run:
            value = accuracy(cell.setting, cell.seed)
            sha256 = config.fingerprint(cell.recipe)
            run.write_result({"schema": 2, "validation_accuracy": value, "diverged": False, "recipe_sha256": sha256})
    return tuning


OVER_SGD = ("tune.same_as={float32-split: float32-sgd, float32-sam: float32-sgd}", "tune.seeds=1")


def stored(folder: Path) -> dict[str, Any]:
    return config.read_recipe_file(folder / "tuned.yaml")


def test_trials_run_before_the_grid_and_what_they_choose_is_trained(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    page = compare(comparison(tmp_path), folder)
    tuned = stored(folder)
    lr = tuned["arms"]["float32-sgd"]["chosen"]["optimizer.lr"]
    assert lr in (1e-6, 0.1, 0.2)  # and the arm as written has 0.05
    assert tuned["arms"]["float32-split"] == {
        "grid": None,
        "trials": None,
        "same_as": "float32-sgd",
        "chosen": {"optimizer.lr": lr},
    }
    for arm in ("float32-sgd", "float32-split"):
        assert config.load_recipe(folder / arm / "seed-0" / "recipe.yaml").optimizer.lr == lr
    trials = list((folder / "tune").glob("*/*/seed-*/result.json"))
    assert len(trials) == 2 * (3 + 2)
    assert {path.parent.name for path in trials} == {"seed-1000", "seed-1001"}
    assert all("test" not in path.read_text() for path in trials)
    assert "float32-sgd" in page.read_text()

    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.json")}
    kept = (folder / "tuned.yaml").read_bytes()
    compare(comparison(tmp_path), folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.json")} == before
    assert (folder / "tuned.yaml").read_bytes() == kept


def test_the_best_mean_over_seeds_is_chosen_and_the_first_of_equals(tmp_path: Path) -> None:
    values = {
        ("optimizer.lr=1e-06", 1000): 0.9,
        ("optimizer.lr=1e-06", 1001): 0.2,
        ("optimizer.lr=0.1", 1000): 0.6,
        ("optimizer.lr=0.1", 1001): 0.7,
        ("optimizer.lr=0.2", 1000): 0.7,
        ("optimizer.lr=0.2", 1001): 0.6,
    }
    tuning = write_trials(tmp_path / "out", comparison(tmp_path), lambda name, seed: values.get((name, seed), 0.5))
    assert tuning.settings("float32-sgd") is None
    tuning.settle(Listener())
    assert tuning.settings("float32-sgd") == {"optimizer.lr": 0.1}
    assert tuning.settings("float32-split") == {"optimizer.lr": 0.1}
    assert tuning.settings("float32-sam") == {"optimizer.rho": 0.05, "optimizer.lr": 0.05}


def test_a_choice_stays_when_the_comparison_goes_on_and_is_made_anew_for_another_grid(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    tuning = write_trials(folder, comparison(tmp_path), lambda name, seed: 0.9 if "0.2" in name else 0.5)
    tuning.settle(Listener())
    for path in (folder / "tune").rglob("result.json"):
        path.unlink()
    again = Tuning(comparison(tmp_path), folder)
    assert (again.known(), again.total) == ([], 0)
    assert again.settings("float32-sgd") == {"optimizer.lr": 0.2}
    wider = Tuning(comparison(tmp_path, "tune.grids.float32-sgd={optimizer.lr: [0.2, 0.4]}"), folder)
    assert {cell.arm for cell in wider.known()} == {"float32-sgd"}
    assert wider.settings("float32-sgd") is None
    assert wider.settings("float32-sam") is not None


def test_a_grid_over_the_choice_of_another_arm_waits_for_it_and_is_put_over_it(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    one = comparison(tmp_path, *OVER_SGD, text=GRID.replace(", optimizer.lr: [0.05]", ""))
    tuning = write_trials(folder, one, lambda name, seed: 0.9 if "0.2" in name else 0.5)
    assert tuning.total == 3 + 2
    assert tuning.known() == []
    tuning.settle(Listener())
    assert tuning.settings("float32-sam") is None
    assert [cell.recipe.optimizer.lr for cell in tuning.known()] == [0.2, 0.2]
    compare(one, folder)
    sam = stored(folder)["arms"]["float32-sam"]
    assert sam["same_as"] == "float32-sgd"
    assert [trial["settings"] for trial in sam["trials"]] == [{"optimizer.rho": 0.05}, {"optimizer.rho": 0.1}]
    recipe = config.load_recipe(folder / "float32-sam" / "seed-0" / "recipe.yaml")
    assert recipe.optimizer.lr == 0.2
    assert sam["chosen"] == {"optimizer.lr": 0.2, "optimizer.rho": recipe.optimizer.model_dump()["rho"]}


def test_a_choice_made_over_one_that_no_longer_stands_is_made_anew(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    write_trials(folder, comparison(tmp_path, *OVER_SGD), lambda name, seed: 0.5)
    compare(comparison(tmp_path, *OVER_SGD), folder)
    stands = Tuning(comparison(tmp_path, *OVER_SGD), folder)
    assert stands.settings("float32-sam") is not None
    wider = Tuning(comparison(tmp_path, *OVER_SGD, "tune.grids.float32-sgd={optimizer.lr: [0.2, 0.4]}"), folder)
    assert wider.settings("float32-sam") is None


def test_a_run_made_with_another_choice_is_not_counted(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    one = comparison(tmp_path, "tune=null")
    recipe = resolve(one.arm("float32-sgd", 0))
    for arm in one.arms:
        with RunFolder(folder / arm / "seed-0", config.dump_yaml(recipe)) as run:
            run.write_result({"schema": 2, "recipe_sha256": config.fingerprint(recipe)})
    with pytest.raises(RunFolderError, match=r"float32-split.*a changed recipe for a run that is finished"):
        compare(one, folder)


def test_a_setting_that_diverges_loses_and_does_not_stop_the_study(
    tmp_path: Path, small_recipe: Callable[..., config.Recipe]
) -> None:
    recipe = small_recipe(optimizer={"name": "sgd", "lr": 1e30}, quant=None)
    result = run_trial(recipe, tmp_path / "trial")
    assert (result["validation_accuracy"], result["diverged"]) == (0.0, True)
    assert json.loads((tmp_path / "trial" / "result.json").read_text()) == result


def test_the_plan_counts_the_trials(tmp_path: Path) -> None:
    lines = comparison_plan(comparison(tmp_path))
    assert "[float32-sgd] x 1 seeds, after 6 runs of trials" in lines
    assert "[all] 13 runs, 10 of them trials" in lines
    # five steps a run: SGD 7 runs, the split 1, SAM 5 runs of two gradients a step
    (gradients,) = [line for line in lines if line.startswith("gradients")]
    assert gradients.split() == ["gradients", str(5 * (7 + 1 + 2 * 5))]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("tune.grids.float32-sgdd={optimizer.lr: [0.1]}", "did you mean float32-sgd?"),
        ("tune.grids.float32-sgd={optimizer.lr: [0.1, 0.1]}", "expected each value once"),
        ("tune.grids.float32-sgd={optimizer.lr: [0.1, -1]}", "optimizer.lr: got -1"),
        ("tune.grids.float32-sgd={optimizer.lr: []}", "tune.grids.float32-sgd.optimizer.lr: got []"),
        ("tune.same_as={float32-split: float32-samm}", "did you mean float32-sam?"),
        ("tune.same_as={float32-samm: float32-sgd}", "did you mean float32-sam?"),
        (
            "tune.same_as={float32-sam: float32-sgd, float32-sgd: float32-sam}",
            "tune.same_as.float32-sam: got float32-sgd; expected an arm whose trials wait for no other's",
        ),
        ("tune.seeds=0", "tune.seeds: got 0"),
        ("arms.tune={}", "arms.tune: got tune"),
        ("arms.float32-sam.role=samm", "did you mean sam?"),
    ],
)
def test_a_wrong_grid_is_refused_by_its_key(change: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        comparison(tmp_path, change)
    assert expected in str(refused.value)
