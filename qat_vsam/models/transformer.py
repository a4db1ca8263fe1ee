"""Transformers of the Hugging Face library by folder, cached name or type: one tensor in, one tensor out."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qat_vsam.errors import InputError, MissingDependencyError, did_you_mean, explain
from qat_vsam.models.model_info import ModelInfo

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


class TensorTransformer(nn.Module):
    """A transformer of the library as a map from one tensor to one tensor.

    Args:
        model: a `transformers.PreTrainedModel`, kept as the child `model`.

    Shape:
        Images (N, C, H, W), floating point, or tokens (N, L), integers, of which `pad_token_id` is masked. Out come
        the logits of a model with a head, (N, classes). One without gives an embedding (N, D): its last hidden
        states, averaged over the tokens that are not masked.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.pad_token_id = getattr(model.config, "pad_token_id", None)

    def forward(self, x: Tensor) -> Tensor:
        if x.is_floating_point():
            mask = None
            output = self.model(pixel_values=x)
        else:
            mask = torch.ones_like(x) if self.pad_token_id is None else (x != self.pad_token_id).to(x.dtype)
            output = self.model(input_ids=x, attention_mask=mask)
        if "logits" in output:
            logits: Tensor = output["logits"]
            return logits
        states: Tensor = output["last_hidden_state"]  # (N, L, D)
        if mask is None:
            return states.mean(1)
        weight = mask[..., None].to(states.dtype)
        return (states * weight).sum(1) / weight.sum(1).clamp_min(1)


def find_transformer(name: str) -> Callable[..., nn.Module]:
    """The builder of a transformer: a folder, a name in the library's cache, or a type such as "vit".

    A folder or a cached name brings its weights if they are safetensors; a type has random ones, and options then
    set fields of its configuration. The model is the class that the configuration names, for a type the image
    classifier if there is one. No code that comes with a model is run, and nothing is downloaded.

    Raises:
        MissingDependencyError: the library is not installed.
        InputError: there is no such folder, cached name or type.
    """
    _transformers(name)
    if _is_type(name):
        return partial(_build_type, name)
    _config(name)
    return partial(_build_saved, name)


def transformer_info(name: str) -> ModelInfo:
    """What a transformer expects, by its configuration and, where it lies beside it, that of its preprocessor."""
    config: Any = _transformers(name).AutoConfig.for_model(name) if _is_type(name) else _config(name)
    size, mean, std = getattr(config, "image_size", None), (0.0,), (1.0,)
    shape = (config.num_channels, size, size) if isinstance(size, int) and hasattr(config, "num_channels") else None
    preprocessor = Path(name) / "preprocessor_config.json"
    if preprocessor.is_file():
        values = json.loads(preprocessor.read_text())
        mean, std = tuple(values.get("image_mean", mean)), tuple(values.get("image_std", std))
    classes = config.num_labels if any("Classification" in each for each in config.architectures or []) else None
    return ModelInfo(mean, std, shape, classes, f"transformers {config.model_type}")


def _build_saved(name: str, **options: Any) -> nn.Module:
    transformers = _transformers(name)
    config = _config(name)
    _check_fields(name, config, options)
    config.update(options)
    kind = getattr(transformers, next(iter(config.architectures or ["AutoModel"])), None)
    if kind is None:
        got = f"the class {config.architectures[0]}"
        raise InputError(explain(f"model hf:{name}", got, "a class of transformers", "give a model of the library"))
    if Path(name).is_dir() and not any((Path(name) / file).is_file() for file in _WEIGHTS):
        return TensorTransformer(_from_config(kind, config))
    return TensorTransformer(kind.from_pretrained(name, config=config, local_files_only=True, use_safetensors=True))


def _build_type(name: str, **options: Any) -> nn.Module:
    transformers = _transformers(name)
    _check_fields(name, transformers.AutoConfig.for_model(name), options)
    try:
        config = transformers.AutoConfig.for_model(name, **options)
    except Exception as error:  # the library's validation has exceptions of its own, of several lines
        reason = str(error).splitlines()[0]
        raise InputError(
            explain(f"model hf:{name}", f"{options} ({reason})", "fitting values", "correct them")
        ) from error
    classifiers = transformers.AutoModelForImageClassification
    kind = classifiers if type(config) in classifiers._model_mapping else transformers.AutoModel
    return TensorTransformer(_from_config(kind, config))


def _check_fields(name: str, config: Any, options: dict[str, Any]) -> None:
    for key in options:
        if not hasattr(config, key):
            advice = did_you_mean(key, list(config.to_dict()))
            raise InputError(explain(f"model hf:{name}.{key}", "an unknown option", "a field of its config", advice))


def _from_config(kind: Any, config: Any) -> nn.Module:
    model: nn.Module = kind.from_config(config) if hasattr(kind, "from_config") else kind(config)
    # as from_pretrained leaves it
    return model.eval()


def _is_type(name: str) -> bool:
    return not Path(name).exists() and name in _transformers(name).CONFIG_MAPPING


def _config(name: str) -> Any:
    try:
        return _transformers(name).AutoConfig.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError) as error:
        types = list(_transformers(name).CONFIG_MAPPING)
        near = did_you_mean(name, types)
        advice = near if near.startswith("did you mean") else "fetch the model first, and give its folder"
        got = f"'hf:{name}'"
        raise InputError(explain("model", got, "a folder with config.json, a cached name or a type", advice)) from error


def _transformers(name: str) -> Any:
    try:
        import transformers
    except ImportError as error:
        advice = "pip install 'qat-vsam[transformers]'"
        raise MissingDependencyError(
            explain(f"model hf:{name}", "no package transformers", "transformers installed", advice)
        ) from error
    return transformers
