"""Every name that a recipe may use, and which packages stand behind them."""

from __future__ import annotations

from importlib import metadata

from qat_vsam.config import shipped_configs
from qat_vsam.data import list_datasets
from qat_vsam.models import list_models
from qat_vsam.quant import list_methods, list_presets, list_targets
from qat_vsam.quant.compiled import compiler_trouble
from qat_vsam.recipes.optimizers import list_optimizers
from qat_vsam.recipes.train import EXPORT_NAMES

_BACKENDS = (
    "torch",
    "torchvision",
    "torchao",
    "brevitas",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "timm",
    "openvino",
    "qonnx",
    "onnxoptimizer",
    "transformers",
    "accelerate",
    "lightning",
    "tensorboard",
)
# package -> the extra that brings it, where that is called otherwise
_EXTRAS = {"onnxoptimizer": "qonnx"}


def catalogue() -> dict[str, list[str]]:
    """Kind -> names, for `qat-vsam ls`.

    Example:
        >>> "vsam" in catalogue()["optimizers"]
        True
    """
    return {
        "recipes": list(shipped_configs()),
        "models": list_models(),
        "datasets": list_datasets(),
        "optimizers": list_optimizers(),
        "quantizers": list_methods(),
        "bits": list_presets(),
        "exports": list(EXPORT_NAMES),
        "targets": list_targets(),
    }


def describe_backends() -> dict[str, str]:
    """Package -> version, or how to get it; and whether quantizers run as fused kernels."""
    found = {"fused quantizers": compiler_trouble() or "for large tensors, by torch.compile"}
    for package in _BACKENDS:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = f"not installed; pip install 'qat-vsam[{_EXTRAS.get(package, package)}]'"
    return found
