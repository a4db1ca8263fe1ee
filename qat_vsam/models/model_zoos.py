"""Image classifiers of torchvision and timm by name, without weights: nothing is downloaded here."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from qat_vsam.errors import InputError, MissingDependencyError, did_you_mean, explain
from qat_vsam.models.model_info import IMAGENET_MEAN, IMAGENET_STD, ModelInfo

# options by which a zoo would fetch weights
_DOWNLOADS = ("weights", "weights_backbone", "pretrained", "pretrained_cfg", "checkpoint_path")


def torchvision_names() -> list[str]:
    """Every classification model of torchvision, each as `torchvision:NAME`."""
    # a second of imports, which the other models should not pay for
    import torchvision

    # classification only: the builders of detection models download a backbone unless told otherwise
    return [f"torchvision:{name}" for name in torchvision.models.list_models(module=torchvision.models)]


def find_torchvision(name: str) -> Callable[..., nn.Module]:
    """The builder of a torchvision model.

    Raises:
        InputError: no classification model has this name.
    """
    known = torchvision_names()
    if f"torchvision:{name}" not in known:
        advice = did_you_mean(f"torchvision:{name}", known)
        raise InputError(explain("model", f"'torchvision:{name}'", "a known model", advice))
    return partial(_build_torchvision, name)


def torchvision_info(name: str) -> ModelInfo:
    """What the image classifiers of torchvision expect."""
    return ModelInfo(IMAGENET_MEAN, IMAGENET_STD, (3, 224, 224), 1000, "torchvision.models")


def find_timm(name: str) -> Callable[..., nn.Module]:
    """The builder of a timm model.

    Raises:
        MissingDependencyError: timm is not installed.
        InputError: timm has no model of this name.
    """
    timm = _timm(name)
    if not timm.is_model(name):
        advice = did_you_mean(f"timm:{name}", [f"timm:{each}" for each in timm.list_models()])
        # timm has more than a thousand models: without a near one the list would be no advice
        advice = advice if advice.startswith("did you mean") else "see timm.list_models()"
        raise InputError(explain("model", f"'timm:{name}'", "a known model", advice))
    return partial(_build_timm, name)


def timm_info(name: str) -> ModelInfo:
    """What a timm model expects, by its own configuration."""
    config = _timm(name).get_pretrained_cfg(name)
    if config is None:
        return ModelInfo(IMAGENET_MEAN, IMAGENET_STD, None, None, "timm")
    return ModelInfo(tuple(config.mean), tuple(config.std), tuple(config.input_size), config.num_classes, "timm")


def _build_torchvision(name: str, **options: Any) -> nn.Module:
    import torchvision

    _refuse_downloads(f"torchvision:{name}", options)
    model: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    return model


def _build_timm(name: str, **options: Any) -> nn.Module:
    _refuse_downloads(f"timm:{name}", options)
    model: nn.Module = _timm(name).create_model(name, pretrained=False, **options)
    return model


def _refuse_downloads(name: str, options: dict[str, Any]) -> None:
    for option in _DOWNLOADS:
        if option in options:
            raise InputError(
                explain(
                    f"model {name}.{option}",
                    repr(options[option]),
                    "an architecture without weights, since nothing is downloaded here",
                    "fetch the file yourself and give it as checkpoint",
                )
            )


def _timm(name: str) -> Any:
    try:
        import timm
    except ImportError as error:
        raise MissingDependencyError(
            explain(f"model timm:{name}", "no package timm", "timm installed", "pip install 'qat-vsam[timm]'")
        ) from error
    return timm
