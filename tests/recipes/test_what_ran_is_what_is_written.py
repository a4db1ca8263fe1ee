"""Promises of a result: it says all that ran, a run under another default is another run, its command repeats it."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qat_vsam import config
from qat_vsam.errors import RunFolderError
from qat_vsam.optim import PeriodicSAM
from qat_vsam.recipes import resolve, run_recipe
from qat_vsam.recipes.trial import run_trial
from qat_vsam.train import RunFolder, describe_environment
from qat_vsam.train.environment import source_commit

Build = Callable[..., config.Recipe]
Call = Callable[..., tuple[int, str, str]]

PERIODIC = {"optimizer": {"name": "periodic_sam"}, "train": {"epochs": 1}}


def test_a_resolved_recipe_leaves_nothing_open_and_resolves_to_itself(small_recipe: Build) -> None:
    recipe = resolve(small_recipe(**PERIODIC, seed=7))
    assert recipe.data.seed == 0
    assert recipe.model.mean is not None
    assert recipe.model.std is not None
    assert {"rho": 0.05, "interval": 5, "reuse": 0.0}.items() <= recipe.optimizer.options.items()
    assert resolve(recipe) == recipe
    again = resolve(config.recipe_from(json.loads(recipe.model_dump_json())))
    assert config.fingerprint(again) == config.fingerprint(recipe)


def test_a_result_tells_options_draw_loss_and_origin(tmp_path: Path, small_recipe: Build) -> None:
    result = run_recipe(small_recipe(**PERIODIC, data={"seed": 3}, amp="bf16"), tmp_path / "run")
    assert result["schema"] == 2
    assert {"base", "lr", "momentum", "rho", "interval", "step_size_lr_factor"} <= set(result["optimizer_options"])
    assert result["optimizer_derived"]["class"] == "PeriodicSAM"
    assert result["optimizer_derived"]["total_steps"] == result["cost"]["steps"] == 5
    counts = {"train": 100, "validation": 500, "test": 997}
    section = {"name": "digits", "augment": None, "label_noise": 0.0, "options": {}, "seed": 3}
    assert result["data"] == section | counts
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert result["training_loss"] == [line["train_loss"] for line in lines if line["kind"] == "epoch"][-1]
    assert result["fused_quantizers"] is False
    origin = result["provenance"]
    here = describe_environment(torch.device("cpu"))
    assert {key: origin[key] for key in here} == here
    assert set(origin["versions"]) == {"torch", "torchvision", "numpy", "python"}
    assert origin["amp"] == "bf16"
    assert len(origin["finished"].split("-")) == 3
    assert "versions" not in result
    kept = config.load_recipe(tmp_path / "run" / "recipe.yaml")
    assert config.fingerprint(kept) == result["recipe_sha256"]
    assert kept.optimizer.options["rho"] == 0.05


def test_a_run_that_was_not_trained_has_no_optimizer_and_no_loss(tmp_path: Path, small_recipe: Build) -> None:
    result = run_recipe(small_recipe(train={"epochs": 0}), tmp_path)
    assert (result["optimizer_derived"], result["training_loss"], result["cost"]) == (None, None, {})
    assert result["provenance"]["threads"] == 1


@pytest.mark.parametrize("job", [run_recipe, run_trial])
def test_a_run_made_under_another_default_is_refused_with_the_difference(
    job: Callable[..., dict[str, Any]], tmp_path: Path, small_recipe: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small_recipe(**PERIODIC, quant=None)
    job(recipe, tmp_path / "run")
    job(recipe, tmp_path / "run")
    assert PeriodicSAM.__init__.__kwdefaults__ is not None
    monkeypatch.setitem(PeriodicSAM.__init__.__kwdefaults__, "rho", 0.2)
    with pytest.raises(RunFolderError, match=r"(?s)-  rho: 0.05.*\+  rho: 0.2"):
        job(recipe, tmp_path / "run")


@pytest.mark.parametrize("job", [run_recipe, run_trial])
def test_a_result_without_options_is_refused_by_name(
    job: Callable[..., dict[str, Any]], tmp_path: Path, small_recipe: Build
) -> None:
    with RunFolder(tmp_path / "run") as run:
        run.write_result({"schema": 1, "accuracy": {"test": 0.5}})
    with pytest.raises(RunFolderError, match=r"run/result\.json: .*its optimizer's options were not recorded"):
        job(small_recipe(), tmp_path / "run")


def test_a_run_that_went_on_elsewhere_lists_both_places(tmp_path: Path, small_recipe: Build) -> None:
    recipe = small_recipe(**PERIODIC)
    elsewhere = describe_environment(torch.device("cpu")) | {"commit": "aaaaaaaaaaaa", "processor": "another"}
    with RunFolder(tmp_path, config.dump_yaml(resolve(recipe))) as run:
        run.record_environment(elsewhere)
    origin = run_recipe(recipe, tmp_path)["provenance"]
    here = describe_environment(torch.device("cpu"))
    assert origin["processor"] == f"another, {here['processor']}"
    assert origin["commit"] == f"aaaaaaaaaaaa, {here['commit'] or 'unknown'}"
    assert origin["threads"] == here["threads"]


def repository(folder: Path) -> Path:
    """A checkout with one commit, of a package in a folder of its own."""
    package = folder / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("one = 1\n")
    (folder / "notes.txt").write_text("outside\n")
    names = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
    for command in (["init", "-q"], ["add", "."], [*names, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", str(folder), *command], check=True)
    return package


def looked_up(package: Path) -> str | None:
    source_commit.cache_clear()
    found = source_commit(package)
    source_commit.cache_clear()
    return found


def test_the_commit_is_that_of_the_package_and_marked_where_it_was_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = repository(tmp_path / "checkout")
    command = ["git", "-C", str(package), "rev-parse", "HEAD"]
    commit = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as a hook of git has it
    assert looked_up(package) == commit[:12]
    (package / "new.py").write_text("not tracked\n")
    (package.parent / "notes.txt").write_text("changed, and no part of the package\n")
    assert looked_up(package) == commit[:12]
    (package / "__init__.py").write_text("one = 2\n")
    assert looked_up(package) == f"{commit[:12]}+dirty"


def test_without_git_or_outside_a_checkout_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = repository(tmp_path / "checkout")
    installed = package.parent / "venv" / "package"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert looked_up(installed) is None  # below a checkout, and no part of it
    (tmp_path / "plain").mkdir()
    assert looked_up(tmp_path / "plain") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert looked_up(package) is None


def test_the_command_of_a_result_repeats_the_run(
    command_line: Call, small_recipe: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = run_recipe(small_recipe(**PERIODIC, quant=None, name="source"), "source")
    recipe = small_recipe(**PERIODIC, threads=1)
    first = run_recipe(recipe, "first", start=Path("source") / "weights.pt")
    assert first["accuracy"]["float_before"] == source["accuracy"]["test"]
    words = shlex.split(first["command"])
    code, _, err = command_line(*words[1:])
    assert code == 0, err
    again = json.loads((tmp_path / words[words.index("--out") + 1] / "result.json").read_text())
    assert again["recipe_sha256"] == first["recipe_sha256"]
    assert again["accuracy"] == first["accuracy"]
    # and what is typed is kept as it was typed, but for the place of the results
    (tmp_path / "typed.yaml").write_text(config.dump_yaml(recipe))
    assert command_line("train", "typed.yaml", "train.log_every=2", "--out", "typed")[0] == 0
    typed = json.loads((tmp_path / "typed" / "result.json").read_text())
    assert typed["command"] == "qat-vsam train typed.yaml train.log_every=2"


def test_an_arm_draws_its_images_by_the_run_s_seed_unless_it_says_otherwise(tmp_path: Path) -> None:
    text = (
        "name: g\ntitle: t\nseeds: 2\nrecipe: {model: {name: digits_cnn}, data: {name: digits}}\n"
        "arms: {drawn: {}, fixed: {data: {seed: 5}}}\n"
    )
    (tmp_path / "g.yaml").write_text(text)
    comparison = config.load_comparison(tmp_path / "g.yaml")
    assert [comparison.arm("drawn", seed).data.seed for seed in (0, 1, 1000)] == [0, 1, 1000]
    assert [comparison.arm("fixed", seed).data.seed for seed in (0, 1)] == [5, 5]
    fixed = config.load_comparison(tmp_path / "g.yaml", ["recipe.data.seed=0"])
    assert [fixed.arm("drawn", seed).data.seed for seed in (0, 1)] == [0, 0]
