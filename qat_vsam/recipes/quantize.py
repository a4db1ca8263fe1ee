"""The one-line job: a pretrained checkpoint in, proven low-bit files out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qat_vsam.config import Recipe, recipe_from
from qat_vsam.errors import ConfigError, explain
from qat_vsam.models import is_user_function, model_info
from qat_vsam.recipes.events import Listener
from qat_vsam.recipes.train import run_recipe

# for nets that are already trained: plain SGD at a small rate, over which SAM and VSAM established no gain
# in reports/where-sam-pays/finetune
FINE_TUNING = {"name": "sgd", "lr": 0.02, "momentum": 0.9, "weight_decay": 1e-4}


def quantize_recipe(
    model: str,
    *,
    checkpoint: str | None,
    data: str,
    bits: str,
    epochs: int = 0,
    distill: str | None = None,
    target: str = "simulated",
    keep: list[str] | None = None,
    seed: int = 0,
    device: str = "cpu",
    threads: int | None = None,
    amp: str | None = None,
    model_options: dict[str, Any] | None = None,
    data_options: dict[str, Any] | None = None,
) -> Recipe:
    """The recipe of the job.

    Args:
        model: a name of `build_model`.
        checkpoint: its weights; None leaves what the builder gives.
        data: a dataset's name.
        bits: `w4a4` and the like; `w4` quantizes weights only.
        epochs: of fine-tuning; 0 calibrates only.
        distill: "kl" or "mse" fine-tunes towards the float net's answers, and looks at no labels.
        target: the runtime whose rules shape the quantization.
        keep: layers that stay in float, names or `re:` patterns.
        seed: of order and augmentation.
        device, threads, amp: where and how to compute.
        model_options, data_options: for the builders.

    Raises:
        ConfigError: a value that cannot be.
    """
    data_options = dict(data_options or {})
    if data == "image_folder" and (shape := model_info(model).input_shape) is not None:
        data_options.setdefault("size", shape[-1])
    return recipe_from(
        {
            "name": f"quantize-{model.replace(':', '-')}-{bits}",
            "seed": seed,
            "device": device,
            "threads": threads,
            "amp": amp,
            "model": {"name": model, "checkpoint": checkpoint, "options": model_options or {}},
            "data": {
                "name": data,
                "augment": "crop_flip" if data.startswith("cifar") else None,
                "options": data_options,
            },
            "quant": {"bits": bits, "target": target, "keep": keep or [], "correct_bias": True},
            "optimizer": FINE_TUNING,
            "train": {"epochs": epochs, "distill": distill},
            "export": ["packed", "onnx"],
        }
    )


def quantize(
    recipe: Recipe,
    folder: Path,
    *,
    data_root: Path | None = None,
    listener: Listener | None = None,
    command: str | None = None,
) -> dict[str, Any]:
    """Run it; see `run_recipe`.

    Raises:
        ConfigError: the recipe has no `quant` section.
    """
    if recipe.quant is None:
        raise ConfigError(explain("quant", None, "a section with bits", "give --bits, for example w4a8"))
    # a function of the user and a folder of transformers may bring weights of their own
    brings_weights = is_user_function(recipe.model.name) or recipe.model.name.startswith("hf:")
    if listener is not None and recipe.model.checkpoint is None and not brings_weights:
        listener.say("warning: without --checkpoint the net starts from random weights; give the file of trained ones")
    return run_recipe(recipe, folder, data_root=data_root, listener=listener, command=command)
