"""Models by name: `digits_cnn`, `small_cnn`, `cifar_resnet20`, `torchvision:NAME`, `package.module:function`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qat_vsam.errors import InputError, did_you_mean, explain
from qat_vsam.models.checkpoint import load_checkpoint
from qat_vsam.models.cifar_resnet import CifarResNet
from qat_vsam.models.small_cnn import SmallCNN
from qat_vsam.models.user_function import check_options, import_function, is_user_function

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ModelInfo:
    """What a model expects of its input and where it comes from.

    Attributes:
        mean: subtracted from each channel of an image in [0, 1]; one number counts for all channels.
        std: divides each channel afterwards; one number counts for all channels.
        input_shape: (C, H, W) of one input, or None where the builder does not tell.
        num_classes: number of logits, or None where the builder does not tell.
        source: one line on the origin of the architecture.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_shape: tuple[int, int, int] | None
    num_classes: int | None
    source: str


_DIGITS = ModelInfo((0.3,), (0.375,), (1, 8, 8), 10, "three convolutions for the bundled digits")
_SMALL = ModelInfo(IMAGENET_MEAN, IMAGENET_STD, (3, 16, 16), 10, "five convolutions for images of 16 x 16")
# the public CIFAR checkpoints were trained with ImageNet's constants, not with CIFAR's own
_CIFAR = ModelInfo(IMAGENET_MEAN, IMAGENET_STD, (3, 32, 32), 10, "He et al., arXiv 1512.03385")

_BUILDERS: dict[str, tuple[Callable[..., nn.Module], ModelInfo]] = {
    "digits_cnn": (partial(SmallCNN, in_channels=1, stages=1), _DIGITS),
    "small_cnn": (partial(SmallCNN, in_channels=3, stages=2), _SMALL),
    **{f"cifar_resnet{depth}": (partial(CifarResNet, depth), _CIFAR) for depth in (20, 32, 44, 56)},
}


def list_models() -> list[str]:
    """The names that `build_model` knows, and the two open forms.

    Example:
        >>> "cifar_resnet20" in list_models()
        True
    """
    return [*_BUILDERS, "torchvision:NAME", "package.module:function"]


def build_model(
    name: str, checkpoint: str | Path | None = None, *, seed: int | None = None, **options: Any
) -> nn.Module:
    """Build a model and load its weights.

    The model carries `builder = {"name": ..., "options": ...}`, from which an exported file can be rebuilt.

    Args:
        name: one of `list_models()`. `torchvision:NAME` builds a classification model without pretrained
            weights; `package.module:function` calls a function of yours, which returns the model.
        checkpoint: file for `load_checkpoint`; None keeps the random weights.
        seed: makes the random weights a pure function of it and leaves torch's generator untouched; None
            draws them from torch's generator.
        options: arguments of the builder, such as `num_classes` or `width`.

    Raises:
        InputError: unknown name or option, or a function that cannot be imported or returns no module.
        CheckpointError: the checkpoint is missing, unsafe, or belongs to another model.

    Example:
        >>> model = build_model("digits_cnn", width=8, seed=0)
        >>> model.builder
        {'name': 'digits_cnn', 'options': {'width': 8}}
    """
    builder = _find_builder(name)
    check_options(builder, options, key=f"model {name}")
    with _random_weights(seed):
        try:
            model = builder(**options)
        except InputError:
            raise
        except (TypeError, ValueError) as error:
            raise InputError(
                explain(f"model {name}", f"{options} ({error})", "options that the builder takes", "correct them")
            ) from error
    if not isinstance(model, nn.Module):
        raise InputError(
            explain(f"model {name}", f"a {type(model).__name__}", "a torch.nn.Module", "return the module itself")
        )
    if checkpoint is not None:
        load_checkpoint(model, checkpoint)
    model.builder = {"name": name, "options": options}  # type: ignore[assignment]
    return model


def model_info(name: str, **options: Any) -> ModelInfo:
    """Normalisation constants, input shape and number of classes of a model, without building it.

    A function of yours tells them by its attributes `mean`, `std`, `input_shape` and `num_classes`; without
    them images stay in [0, 1].

    Args:
        name: as in `build_model`.
        options: as in `build_model`; `num_classes` is read.

    Raises:
        InputError: unknown name.

    Example:
        >>> model_info("cifar_resnet20").mean
        (0.485, 0.456, 0.406)
    """
    builder = _find_builder(name)
    num_classes = options.get("num_classes")
    if name in _BUILDERS:
        info = _BUILDERS[name][1]
        return ModelInfo(info.mean, info.std, info.input_shape, num_classes or info.num_classes, info.source)
    if is_user_function(name):
        return ModelInfo(
            mean=tuple(getattr(builder, "mean", (0.0,))),
            std=tuple(getattr(builder, "std", (1.0,))),
            input_shape=getattr(builder, "input_shape", None),
            num_classes=num_classes or getattr(builder, "num_classes", None),
            source=name,
        )
    return ModelInfo(IMAGENET_MEAN, IMAGENET_STD, (3, 224, 224), num_classes or 1000, "torchvision.models")


def _find_builder(name: str) -> Callable[..., nn.Module]:
    if name in _BUILDERS:
        return _BUILDERS[name][0]
    if is_user_function(name):
        return import_function(name, key="model")
    known = list_models()
    prefix, _, torchvision_name = name.partition(":")
    if prefix == "torchvision":
        # a second of imports, which the other models should not pay for
        import torchvision

        # classification only: the builders of detection models download a backbone unless told otherwise
        names = torchvision.models.list_models(module=torchvision.models)
        if torchvision_name in names:
            return partial(_build_torchvision, torchvision_name)
        known = [f"torchvision:{each}" for each in names]
    raise InputError(explain("model", repr(name), "a known model", did_you_mean(name, known)))


def _build_torchvision(name: str, **options: Any) -> nn.Module:
    import torchvision

    for option in ("weights", "weights_backbone", "pretrained"):
        if option in options:
            raise InputError(
                explain(
                    f"model torchvision:{name}.{option}",
                    repr(options[option]),
                    "an architecture without weights, since nothing is downloaded here",
                    "fetch the file yourself and give it as checkpoint",
                )
            )
    return torchvision.models.get_model(name, weights=None, **options)


@contextmanager
def _random_weights(seed: int | None) -> Iterator[None]:
    """Draw from torch's CPU generator as it is, or from a copy with its own seed."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would reach the generators of accelerators too, which are not forked here
        torch.default_generator.manual_seed(seed)
        yield
