"""What can be known to fail before data are read: names, files, packages and layers."""

from __future__ import annotations

import copy
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from torch import nn

from qat_vsam.config import Recipe
from qat_vsam.data import check_source
from qat_vsam.errors import MissingDependencyError, explain
from qat_vsam.quant import prepare
from qat_vsam.recipes import assemble


def check_places(recipe: Recipe, root: Path | None) -> None:
    """The dataset's name and options, its root, the checkpoint's file and the packages of the exports.

    Args:
        recipe: whose names of models and options were checked.
        root: see `assemble.data_root`.

    Raises:
        InputError: a name or option that is none, or no data root.
        CheckpointError: there is no such checkpoint.
        MissingDependencyError: a package that is needed at the end.
    """
    if recipe.model.checkpoint is not None:
        assemble.find_checkpoint(recipe.model.checkpoint, root)
    check_source(recipe.data.name, root, **recipe.data.options)
    if "qonnx" in recipe.export:
        for package in ("onnxoptimizer", "qonnx"):
            if find_spec(package) is None:
                advice = "pip install 'qat-vsam[qonnx]', or leave qonnx out of export"
                raise MissingDependencyError(explain(package, "no such package", "what export qonnx needs", advice))


def check_layers(recipe: Recipe, model: nn.Module) -> None:
    """Whether the layers can be quantized as the recipe says, tried on a copy of the network.

    Raises:
        InputError: a name in `quant.keep` or `quant.overrides` that is no layer's, or bits that a layer cannot have.
    """
    spec = assemble.quant_spec(recipe)
    if spec is not None:
        # where additions are, only data would show
        prepare(copy.deepcopy(model), replace(spec, residual_adds="float"))
