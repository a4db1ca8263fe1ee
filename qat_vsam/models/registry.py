"""Models by name: our own, those of torchvision, timm and transformers, and `package.module:function`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qat_vsam.errors import InputError, did_you_mean, explain
from qat_vsam.models.checkpoint import load_checkpoint
from qat_vsam.models.cifar_resnet import CifarResNet
from qat_vsam.models.model_info import IMAGENET_MEAN, IMAGENET_STD, ModelInfo
from qat_vsam.models.model_zoos import find_timm, find_torchvision, timm_info, torchvision_info, torchvision_names
from qat_vsam.models.small_cnn import SmallCNN
from qat_vsam.models.transformer import find_transformer, transformer_info
from qat_vsam.models.user_function import check_options, import_function, is_user_function

_DIGITS = ModelInfo((0.3,), (0.375,), (1, 8, 8), 10, "three convolutions for the bundled digits")
_SMALL = ModelInfo(IMAGENET_MEAN, IMAGENET_STD, (3, 16, 16), 10, "five convolutions for images of 16 x 16")
# the public CIFAR checkpoints were trained with ImageNet's constants, not with CIFAR's own
_CIFAR = ModelInfo(IMAGENET_MEAN, IMAGENET_STD, (3, 32, 32), 10, "He et al., arXiv 1512.03385")

_BUILDERS: dict[str, tuple[Callable[..., nn.Module], ModelInfo]] = {
    "digits_cnn": (partial(SmallCNN, in_channels=1, stages=1), _DIGITS),
    "small_cnn": (partial(SmallCNN, in_channels=3, stages=2), _SMALL),
    **{f"cifar_resnet{depth}": (partial(CifarResNet, depth), _CIFAR) for depth in (20, 32, 44, 56)},
}
# prefix -> the builder of a name behind it, and what that model expects
_ZOOS: dict[str, tuple[Callable[[str], Callable[..., nn.Module]], Callable[[str], ModelInfo]]] = {
    "torchvision": (find_torchvision, torchvision_info),
    "timm": (find_timm, timm_info),
    "hf": (find_transformer, transformer_info),
}


def list_models() -> list[str]:
    """The names that `build_model` knows, and the open forms.

    Example:
        >>> "cifar_resnet20" in list_models()
        True
    """
    return [*_BUILDERS, "torchvision:NAME", "timm:NAME", "hf:NAME_OR_FOLDER", "package.module:function"]


def build_model(
    name: str, checkpoint: str | Path | None = None, *, seed: int | None = None, **options: Any
) -> nn.Module:
    """Build a model and load its weights.

    The model carries `builder = {"name": ..., "options": ...}`, from which an exported file can be rebuilt.

    Args:
        name: one of `list_models()`. `torchvision:NAME` and `timm:NAME` build an image classifier without
            pretrained weights; `hf:NAME_OR_FOLDER` a transformer, with the weights that lie in the folder or in the
            library's cache, as a `TensorTransformer`; `package.module:function` calls a function of yours, which
            returns the model.
        checkpoint: file for `load_checkpoint`; None keeps the random weights.
        seed: makes the random weights a pure function of it and leaves torch's generator untouched; None
            draws them from torch's generator.
        options: arguments of the builder, such as `num_classes` or `width`.

    Raises:
        InputError: unknown name or option, or a function that cannot be imported or returns no module.
        MissingDependencyError: timm or transformers is asked for and not installed.
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
    the first two `told` is false, and a recipe asks for them where the network is trained already.

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
        return dataclasses.replace(info, num_classes=num_classes or info.num_classes)
    if is_user_function(name):
        return ModelInfo(
            mean=tuple(getattr(builder, "mean", (0.0,))),
            std=tuple(getattr(builder, "std", (1.0,))),
            told=hasattr(builder, "mean") and hasattr(builder, "std"),
            input_shape=getattr(builder, "input_shape", None),
            num_classes=num_classes or getattr(builder, "num_classes", None),
            source=name,
        )
    prefix, _, rest = name.partition(":")
    info = _ZOOS[prefix][1](rest)
    return dataclasses.replace(info, num_classes=num_classes or info.num_classes)


def is_trusted(name: str) -> bool:
    """Whether a name calls none but code of this package and of the zoos that it knows.

    Example:
        >>> is_trusted("timm:resnet18"), is_trusted("somebody.nets:resnet")
        (True, False)
    """
    return ":" not in name or name.partition(":")[0] in _ZOOS


def _find_builder(name: str) -> Callable[..., nn.Module]:
    if name in _BUILDERS:
        return _BUILDERS[name][0]
    prefix, colon, rest = name.partition(":")
    if colon and prefix in _ZOOS:
        return _ZOOS[prefix][0](rest)
    if is_user_function(name):
        return import_function(name, key="model")
    full = f"torchvision:{name}"
    advice = f"did you mean {full}?" if full in torchvision_names() else did_you_mean(name, list_models())
    raise InputError(explain("model", repr(name), "a known model", advice))


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
