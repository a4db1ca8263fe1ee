"""The content of `result.json`: what ran, what came of it, what it cost, and on which code and machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from qat_vsam.config import Recipe, fingerprint
from qat_vsam.data import Dataset
from qat_vsam.errors import CheckpointError, RunFolderError, explain
from qat_vsam.evaluate import Size
from qat_vsam.train import FitResult, describe_environment
from qat_vsam.train.manifest import check_manifest
from qat_vsam.train.run_folder import read_environment

SCHEMA = 2
RESULT = "result.json"
WEIGHTS = "weights.pt"


def read_result(folder: Path) -> dict[str, Any]:
    """The content of a finished run's `result.json`.

    Raises:
        CheckpointError: missing or not JSON, or a file of the run was bent since.
    """
    content = _parsed(folder / RESULT)
    check_manifest(folder)
    return content


def _parsed(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(explain(str(path), error, "a finished run", "run `qat-vsam train` first")) from None
    if not isinstance(content, dict):
        raise CheckpointError(explain(str(path), type(content).__name__, "a JSON object", "run `qat-vsam train` first"))
    return content


def refuse_old_schema(folder: Path) -> None:
    """A run folder that is finished counts only if it says all that a result says today.

    Raises:
        RunFolderError: its result is of an older schema.
    """
    if not (folder / RESULT).is_file():
        return
    schema = _parsed(folder / RESULT).get("schema")
    if schema != SCHEMA:
        advice = "choose another folder, or delete this one and run the same command again"
        got = f"a result of schema {schema}: its optimizer's options were not recorded"
        raise RunFolderError(explain(str(folder / RESULT), got, f"schema {SCHEMA}", advice))


def identity(recipe: Recipe, arm: str, command: str) -> dict[str, Any]:
    """Which run it is, and its optimizer as asked for.

    Args:
        recipe: resolved.
        arm: the name that runs are grouped by.
        command: what repeats it.
    """
    return {
        "schema": SCHEMA,
        "name": recipe.name,
        "arm": arm,
        "label": recipe.label or recipe.name,
        "seed": recipe.seed,
        "precision": recipe.precision,
        "target": recipe.quant.target if recipe.quant else None,
        "kind": _kind(recipe),
        "optimizer": recipe.optimizer.name if recipe.train.epochs else None,
        "optimizer_options": recipe.optimizer.model_dump(mode="json", exclude={"name"}),
        "epochs": recipe.train.epochs,
        "ema": recipe.train.ema if recipe.train.epochs else None,
        "command": command,
        "recipe_sha256": fingerprint(recipe),
    }


def images(recipe: Recipe, data: Dataset) -> dict[str, Any]:
    """Which images were used; `seed` is null where another seed would have drawn the same."""
    section = recipe.data.model_dump(mode="json", include={"name", "augment", "label_noise", "options"})
    counts = {split: len(getattr(data, split)) for split in ("train", "validation", "test")}
    return section | {"seed": recipe.data.seed if data.drawn else None} | counts


def sizes(before: Size, after: Size) -> dict[str, Any]:
    """Of the network in float32, and as it was trained."""
    return {
        "float_bytes": before.float_bytes,
        "packed_bytes": after.packed_bytes,
        "bit_operations": after.bit_operations,
    }


def cost(trained: FitResult | None) -> dict[str, Any]:
    """The ledger's counts; empty for a run that was not trained."""
    if trained is None:
        return {}
    counts = trained.ledger.to_dict()
    return counts | {"gradient_evaluations_per_step": counts["gradient_evaluations"] / counts["steps"]}


def provenance(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """The code and the machines that a run had from its beginning to now.

    Args:
        recipe: resolved.
        folder: of the run; its `environment.json` knows where it began and went on.
    """
    first = read_environment(folder) or describe_environment(torch.device(recipe.device))
    places = [first, *first.get("resumed_in", [])]
    packages = dict.fromkeys(name for place in places for name in place["versions"])
    threads = {place["threads"] for place in places}
    return {
        "package": _listed([place["package"] for place in places]),
        "commit": _listed([place["commit"] for place in places]),
        "versions": {name: _listed([place["versions"].get(name) for place in places]) for name in packages},
        "processor": _listed([place["processor"] for place in places]),
        "platform": _listed([place["platform"] for place in places]),
        "threads": threads.pop() if len(threads) == 1 else None,
        "device": _listed([place["device"] for place in places]),
        "amp": recipe.amp,
        "finished": datetime.now(UTC).date().isoformat(),
    }


def _listed(values: Sequence[str | None]) -> str | None:
    """Values without repeats, in order; None where there is none at all."""
    if all(value is None for value in values):
        return None
    return ", ".join(dict.fromkeys("unknown" if value is None else str(value) for value in values))


def _kind(recipe: Recipe) -> str:
    if recipe.train.epochs > 0:
        return "trained"
    return "post_training" if recipe.quant else "float_reference"
