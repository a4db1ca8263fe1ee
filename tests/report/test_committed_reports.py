"""The committed studies: their pages are what their runs give, and what their runs print rebuilds their optimizers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from qat_vsam.config import load_comparison, recipe_from
from qat_vsam.models import build_model
from qat_vsam.quant import QuantSpec, prepare
from qat_vsam.recipes.optimizers import build_optimizer, describe_optimizer, resolve_optimizer
from qat_vsam.report import build_all, read_records

REPORTS = Path(__file__).parents[2] / "reports"
STUDIES = sorted(path.parent for path in REPORTS.rglob("runs.jsonl"))


def first_runs(study: Path) -> dict[str, dict[str, Any]]:
    """Arm -> result of its first run, of the arms that an optimizer trained."""
    records = [record for record in read_records(study) if record.trial is None]
    return {record.arm: record.result for record in reversed(records) if record.result["optimizer"] is not None}


def printed(result: dict[str, Any]) -> dict[str, Any]:
    """The optimizer's section of a recipe, from what a run printed."""
    return {"name": result["optimizer"], **result["optimizer_options"]}


def test_the_texts_are_what_one_command_writes(tmp_path: Path) -> None:
    root = tmp_path / "reports"
    ignored = shutil.ignore_patterns("figures", "index.html", "*.csv")
    shutil.copytree(REPORTS, root, ignore=ignored)
    build_all(root)
    written = [path.relative_to(REPORTS) for study in STUDIES for path in (study / "summary.md",)]
    for path in [*written, Path("README.md")]:
        assert (root / path).read_text() == (REPORTS / path).read_text(), f"{path}: run qat-vsam report --all reports"


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: str(study.relative_to(REPORTS)))
def test_the_options_that_runs_printed_rebuild_their_optimizers(study: Path) -> None:
    runs = first_runs(study)
    assert runs
    comparison = load_comparison(study / "comparison.yaml")
    for arm, result in runs.items():
        content = comparison.arm(arm, result["seed"]).model_dump(mode="json", exclude={"optimizer"})
        recipe = recipe_from(content | {"optimizer": printed(result)})
        # nothing is left to a default, which may be another one day
        assert resolve_optimizer(recipe.optimizer, result["seed"]).model_dump() == recipe.optimizer.model_dump(), arm
        derived = result["optimizer_derived"]
        if derived is None:
            continue  # what an optimizer derived was not recorded before
        model = build_model(recipe.model.name, seed=0, **recipe.model.options)
        if recipe.quant is not None:
            prepare(model, QuantSpec.preset(recipe.quant.bits))
        built = build_optimizer(recipe, model, derived["total_steps"] // recipe.train.epochs)
        assert describe_optimizer(built, derived["total_steps"]) == derived, arm
