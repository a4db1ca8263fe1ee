"""Promises of the jobs: a killed run goes on to the same bits, a grid skips what is done."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qat_vsam import config
from qat_vsam.data import Split
from qat_vsam.errors import ConfigError
from qat_vsam.recipes import assemble, compare, run_recipe
from qat_vsam.recipes.compare import grid
from qat_vsam.train import RunFolder

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
RUN = "from qat_vsam.cli import main; main()"


def start(recipe: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", RUN, "train", str(recipe), "--out", str(out), "--threads", "1"]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(recipe: Path, out: Path) -> int:
    process = start(recipe, out)
    process.communicate()
    return process.returncode


def steps_seen(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return metrics.read_text().count('"kind": "step"') if metrics.exists() else 0


def kill_at(recipe: Path, run: Path, step: int, how: signal.Signals) -> int:
    """Start the run and stop it as soon as its metrics show `step`; the exit code."""
    process = start(recipe, run)
    while steps_seen(run) < step and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(how)
    process.communicate()
    return process.returncode


def comparable(run: Path) -> dict[str, object]:
    result = json.loads((run / "result.json").read_text())
    counts = {key: result["cost"][key] for key in ("gradient_evaluations", "forwards", "steps", "images")}
    return {"accuracy": result["accuracy"], "counts": counts, "metrics": (run / "metrics.jsonl").read_bytes()}


def test_kill_9_at_five_steps_ends_in_the_bits_of_an_undisturbed_run(
    tmp_path: Path, small_recipe: Callable[..., config.Recipe]
) -> None:
    recipe = small_recipe(train={"epochs": 12, "checkpoint_every": 3})
    path = tmp_path / "recipe.yaml"
    path.write_text(config.dump_yaml(recipe.model_copy(update={"threads": 1})))
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert finish(path, undisturbed) == 0
    kills = [kill_at(path, killed, step, signal.SIGKILL) for step in (1, 7, 20, 33, 51)]
    assert kills.count(-signal.SIGKILL) >= 3  # a run that was already over cannot be killed
    assert finish(path, killed) == 0
    assert comparable(killed) == comparable(undisturbed)
    weights = [torch.load(run / "weights.pt", weights_only=True) for run in (undisturbed, killed)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_sigterm_writes_a_checkpoint_and_leaves_with_143(
    tmp_path: Path, small_recipe: Callable[..., config.Recipe]
) -> None:
    recipe = small_recipe(train={"epochs": 200}, threads=1)
    path = tmp_path / "recipe.yaml"
    path.write_text(config.dump_yaml(recipe))
    assert kill_at(path, tmp_path / "run", 4, signal.SIGTERM) == 143
    assert any((tmp_path / "run" / "checkpoints").iterdir())


def comparison(folder: Path, seeds: int = 2) -> config.Comparison:
    (folder / "grid.yaml").write_text(
        f"""
name: grid
title: A small grid
seeds: {seeds}
workers: 2
recipe:
  model: {{name: digits_cnn, options: {{width: 4}}}}
  data: {{name: digits, train_size: 100, batch_size: 20}}
  optimizer: {{name: sgd, lr: 0.05}}
  train: {{epochs: 2}}
  export: [packed]
arms:
  float32-sgd: {{label: float32 SGD}}
  float32-sam: {{label: float32 SAM, optimizer: {{name: sam, rho: 0.1}}}}
  after: {{label: W4A4 after training, init_from: float32-sgd, quant: {{bits: w4a4}}, train: {{epochs: 0}}}}
bench: {{repeats: 6, steps: 2}}
"""
    )
    return config.load_comparison(folder / "grid.yaml")


def test_a_comparison_trains_exports_times_and_reports(tmp_path: Path) -> None:
    page = compare(comparison(tmp_path), tmp_path / "grid", command="qat-vsam compare grid.yaml")
    assert page == tmp_path / "grid" / "report" / "index.html"
    assert "float32 SAM" in page.read_text()
    rows = list(csv.DictReader((page.parent / "results.csv").read_text().splitlines()))
    assert {(row["arm"], row["seed"]) for row in rows} == {
        (arm, seed) for arm in ("float32-sgd", "float32-sam", "after") for seed in ("0", "1")
    }
    bench = json.loads((tmp_path / "grid" / "bench.json").read_text())
    assert [row["arm"] for row in bench["rows"]] == ["float32-sgd", "float32-sam"]
    results = {
        arm: json.loads((tmp_path / "grid" / arm / "seed-0" / "result.json").read_text())
        for arm in ("float32-sgd", "float32-sam", "after")
    }
    assert results["float32-sam"]["cost"]["gradient_evaluations_per_step"] == 2.0
    assert results["after"]["kind"] == "post_training"
    assert results["after"]["accuracy"]["float_before"] == results["float32-sgd"]["accuracy"]["test"]
    assert all(len(result["exports"]) == 1 for result in results.values())

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    (tmp_path / "grid" / "float32-sam" / "seed-1" / "result.json").unlink()
    again = compare(comparison(tmp_path), tmp_path / "grid", command="qat-vsam compare grid.yaml")
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    assert again == page
    changed = {str(path.relative_to(tmp_path / "grid")) for path in before if before[path] != after[path]}
    assert changed == {"float32-sam/seed-1/result.json"}


def test_a_stopped_comparison_leaves_its_workers_checkpoints(tmp_path: Path) -> None:
    comparison(tmp_path)
    out = tmp_path / "grid"
    command = [sys.executable, "-c", RUN, "compare", str(tmp_path / "grid.yaml"), "recipe.train.epochs=2000"]
    with subprocess.Popen([*command, "--out", str(out)], env=ENVIRONMENT, stderr=subprocess.PIPE) as process:
        while process.poll() is None and not list(out.glob("*/seed-0/checkpoints/*")):
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, complaint = process.communicate()
    assert process.returncode == 143, complaint
    assert not list(out.glob("*/seed-0/result.json"))
    for run in {path.parent.parent for path in out.glob("*/seed-0/checkpoints/*")}:
        with RunFolder(run) as folder:  # no worker holds it any more
            assert folder.restore() is not None


def test_only_the_first_seed_is_exported_and_arms_share_seeds(tmp_path: Path) -> None:
    cells = list(grid(comparison(tmp_path, seeds=3), tmp_path))
    assert [len(cell.recipe.export) for cell in cells] == [1] * 3 + [0] * 6
    assert {cell.recipe.seed for cell in cells if cell.arm == "after"} == {0, 1, 2}


def test_an_arm_that_cannot_be_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    broken = comparison(tmp_path).model_copy(update={"arms": {"a": {}, "b": {"quant": {"bits": "w44"}}}})
    with pytest.raises(ConfigError, match="w44"):
        compare(broken, tmp_path / "grid")
    assert not (tmp_path / "grid").exists()


@pytest.mark.parametrize("name", sorted(config.shipped_configs()))
def test_every_shipped_recipe_runs_two_steps(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = config.shipped_configs()[name]
    if config.is_comparison(config.read_recipe_file(path)):
        whole = config.load_comparison(path)
        recipes = [whole.arm(arm, 1) for arm in whole.arms if whole.arm(arm, 1).init_from is None]
    else:
        recipes = [config.load_recipe(path, ["export=[]"])]
    if recipes[0].data.name != "digits" and "QAT_VSAM_DATA" not in os.environ:
        pytest.skip(f"{name} needs the data that QAT_VSAM_DATA names, which is unset")
    plans = []
    for recipe in recipes:
        few = recipe.model_dump(mode="json")
        few["data"] |= {"train_size": 20, "batch_size": 10, "validation_size": 10}
        few["train"]["epochs"] = min(1, recipe.train.epochs)
        plans.append(config.recipe_from(few))
    # the arms share their data; 20 test images are enough to see that they run
    data = assemble.dataset(plans[0], assemble.data_root(plans[0]))
    data = replace(data, test=Split(data.test.images[:20], data.test.labels[:20]))
    monkeypatch.setattr(assemble, "dataset", lambda recipe, root: data)
    for number, plan in enumerate(plans):
        result = run_recipe(plan, tmp_path / str(number))
        assert result["cost"].get("steps", 0) == 2 * plan.train.epochs
