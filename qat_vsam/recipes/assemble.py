"""From a recipe to its parts: the one place that knows which name means which class."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler

from qat_vsam.config import DataSection, Recipe
from qat_vsam.data import Batches, Dataset, Source, Split, load_source
from qat_vsam.errors import CheckpointError, ConfigError, explain
from qat_vsam.models import ModelInfo, build_model, model_info
from qat_vsam.quant import LayerRule, QuantSpec, calibrate, correct_bias, prepare, set_compiled
from qat_vsam.quant.backends.brevitas import check_brevitas, to_brevitas
from qat_vsam.quant.observers import TORCHAO_METHODS, check_observed
from qat_vsam.recipes.optimizers import resolve_optimizer
from qat_vsam.train import DISTILLATION_LOSSES

EVALUATION_BATCH = 500
MOST_BYTES_ON_DEVICE = 2**31


def data_root(recipe: Recipe, given: Path | None = None) -> Path | None:
    """Where data lie: the option, else the recipe, `QAT_VSAM_DATA`, or the user's cache folder if there."""
    for place in (given, recipe.data.root, os.environ.get("QAT_VSAM_DATA")):
        if place is not None:
            return Path(place)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "qat_vsam"
    return cache if cache.is_dir() else None


def check_names(recipe: Recipe) -> None:
    """Everything that can be wrong with a recipe's names and options, before any data is read.

    Raises:
        InputError: an unknown model, optimizer option or bit width; the message names the key.
    """
    _check_normalisation(recipe, model_info(recipe.model.name))
    quant_spec(recipe)
    _check_backend(recipe)
    _check_calibration(recipe)
    resolve_optimizer(recipe.optimizer)
    _check_device(recipe.device)


def quant_spec(recipe: Recipe) -> QuantSpec | None:
    """The quantization that the recipe asks for, or None."""
    if recipe.quant is None:
        return None
    section = recipe.quant
    how = section.model_dump(include={"method", "power_of_two", "surrogate", "surrogate_strength", "group_size"})
    return QuantSpec.preset(
        section.bits,
        target=section.target,
        keep=tuple(section.keep),
        overrides=[LayerRule.preset(layers, bits, **how) for layers, bits in section.overrides.items()],
        first_last_bits=section.first_last_bits,
        balanced=section.balanced,
        residual_adds=section.residual_adds,
        batch_norm=section.batch_norm,
        freeze_after=section.freeze_after,
        **how,
    )


def dataset(recipe: Recipe, root: Path | None) -> Dataset:
    """Load the data and draw from them by `data.seed`; where that is left open, by 0.

    A process that asks again for the same data gets the same object, and another draw decodes only the images that no
    earlier one had. The object is not to be changed.
    """
    return _dataset(recipe.data.model_dump_json(), root)


@lru_cache(maxsize=1)
def _dataset(section_json: str, root: Path | None) -> Dataset:
    section = DataSection.model_validate_json(section_json)
    return _source(section.name, root, json.dumps(section.options)).draw(
        train_size=section.train_size,
        validation_size=section.validation_size,
        validation_from=section.validation_from,
        label_noise=section.label_noise,
        seed=section.seed or 0,
    )


@lru_cache(maxsize=1)
def _source(name: str, root: Path | None, options_json: str) -> Source:
    return load_source(name, root, **json.loads(options_json)).kept()


def float_model(recipe: Recipe, root: Path | None) -> nn.Module:
    """The network before quantization, with its checkpoint's weights or random ones by the run's seed."""
    section = recipe.model
    checkpoint = None if section.checkpoint is None else find_checkpoint(section.checkpoint, root)
    model = build_model(section.name, checkpoint, seed=recipe.seed, **section.options)
    return model.to(recipe.device).to(memory_format=torch.channels_last)


def quantize_model(recipe: Recipe, model: nn.Module, images: Batches) -> str:
    """Prepare and calibrate in place; the summary as text.

    Args:
        recipe: with a `quant` section.
        model: the float network.
        images: training images in order, not augmented.
    """
    spec = quant_spec(recipe)
    if spec is None or recipe.quant is None:
        raise ConfigError(explain("quant", None, "a section with bits", "add quant.bits=w4a4"))
    first, _ = next(iter(images))
    summary = prepare(model, spec, sample=first[:2])
    wanted = -(-recipe.quant.calibration_images // images.batch_size)
    batches = min(wanted, len(images))
    calibrate(model, images, max_batches=batches, method=recipe.quant.calibration)
    if recipe.quant.correct_bias:
        correct_bias(model, images, max_batches=batches)
    set_compiled(model, recipe.train.compile_quantizers)
    return str(summary)


def use_backend(recipe: Recipe, model: nn.Module) -> None:
    """Replace the layers of a prepared and calibrated model, in place, by those of the recipe's backend."""
    if recipe.quant is not None and recipe.quant.backend == "brevitas":
        to_brevitas(model)
        model.to(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Loaders:
    """The batches of a run: for training, calibration, validation and test."""

    train: Batches
    calibration: Batches
    validation: Batches
    test: Batches


def loaders(recipe: Recipe, data: Dataset) -> Loaders:
    """Batches of each split, normalised as the model wants them.

    The images lie on the recipe's device from the start, as uint8, so that no step waits for the host's memory;
    data too large to live beside a network stay on the host and travel batch by batch.
    """
    info = normalisation(recipe)
    common: dict[str, Any] = {"mean": info[0], "std": info[1], "device": recipe.device, "channels_last": True}
    section = recipe.data
    splits: tuple[Split, ...] = (data.train, data.validation, data.test)
    if sum(split.images.nbytes for split in splits) <= MOST_BYTES_ON_DEVICE:
        splits = tuple(split.to(recipe.device) for split in splits)
    training, validation, test = splits

    def ordered(split: Split) -> Batches:
        return Batches(split, min(EVALUATION_BATCH, len(split)), **common)

    train = Batches(
        training,
        section.batch_size,
        augment=section.augment,
        shuffle=True,
        seed=recipe.seed,
        drop_last=section.drop_last,
        **common,
    )
    shuffled = Batches(training, min(128, len(training)), shuffle=True, seed=0, **common)
    return Loaders(train, shuffled, ordered(validation), ordered(test))


def normalisation(recipe: Recipe) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel: the recipe's, else the model's."""
    info: ModelInfo = model_info(recipe.model.name)
    return list(recipe.model.mean or info.mean), list(recipe.model.std or info.std)


def build_lr_scheduler(recipe: Recipe, optimizer: Optimizer, total_steps: int) -> LRScheduler:
    """One step of the scheduler for each step of the optimizer; the cosine ends at zero."""
    if recipe.train.lr_schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=total_steps)
    return ConstantLR(optimizer, factor=1.0, total_iters=0)


def loss_function(recipe: Recipe) -> Callable[[Tensor, Tensor], Tensor]:
    """Mean cross entropy over the rows, or the distance to the float net's answers."""
    if recipe.train.distill is not None:
        return DISTILLATION_LOSSES[recipe.train.distill]
    return nn.CrossEntropyLoss(label_smoothing=recipe.train.label_smoothing)


def _check_backend(recipe: Recipe) -> None:
    spec = quant_spec(recipe)
    if spec is None or recipe.quant is None or recipe.quant.backend == "own":
        return
    check_brevitas(spec)
    if other := [kind for kind in recipe.export if kind != "qonnx"]:
        advice = "write export: [qonnx], or quant.backend: own"
        raise ConfigError(explain("export", other, "qonnx alone with quant.backend brevitas", advice))
    if recipe.train.compile_quantizers:
        advice = "leave it out, or use quant.backend: own"
        raise ConfigError(explain("train.compile_quantizers", True, "false with quant.backend brevitas", advice))


def _check_calibration(recipe: Recipe) -> None:
    spec = quant_spec(recipe)
    if spec is None or recipe.quant is None or recipe.quant.calibration not in TORCHAO_METHODS:
        return
    rules: list[QuantSpec | LayerRule] = [spec, *spec.overrides]
    for rule in rules:
        if rule.weight is not None:
            check_observed("quant.weight", rule.weight, "weight", recipe.quant.calibration)
        if rule.activation is not None:
            check_observed("quant.activation", rule.activation, "activation", recipe.quant.calibration)


def _check_normalisation(recipe: Recipe, info: ModelInfo) -> None:
    for key in ("mean", "std"):
        values = getattr(recipe.model, key)
        if values is not None and info.input_shape is not None and len(values) not in (1, info.input_shape[0]):
            rule = f"a number for each of {info.input_shape[0]} channels, or one for all"
            raise ConfigError(explain(f"model.{key}", values, rule, "correct it"))


def _check_device(name: str) -> None:
    try:
        torch.zeros(1, device=name).item()  # the meta device has tensors, and no numbers
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0][:120]
        raise ConfigError(explain("device", name, "a device that is here", f"use cpu ({reason})")) from None


def find_checkpoint(text: str, root: Path | None) -> Path:
    """The file that a recipe names: from here, or from the data root.

    Raises:
        CheckpointError: it is at neither place.
    """
    places = [Path(text), *([] if root is None or Path(text).is_absolute() else [root / text])]
    for path in places:
        if path.is_file():
            return path
    looked = " and ".join(str(path) for path in places)
    raise CheckpointError(
        explain("model.checkpoint", text, f"a file that exists; looked for {looked}", "check the path")
    )
