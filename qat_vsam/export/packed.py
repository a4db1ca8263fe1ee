"""The bit-packed file: integer codes at their true size, in the safetensors format.

    NAME.weight_codes       uint8, ceil(weights * bits / 8) bytes, see `bits.py`
    NAME.weight_scale       float32, one for each output channel
    NAME.activation_scale   float32, one number; absent in a weight-only layer
    NAME.quantizer_after.scale   float32, one number, of a tensor quantized between layers (or quantizer_before)
    everything else         biases, norms and float layers, as in the model's state_dict

The metadata holds the layer table (shape and grids of every packed layer), how to build the model, and
a SHA-256 over names, types, shapes, bytes and metadata: no flipped bit goes unseen.
Nothing in the file is executed when it is read.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from qat_vsam.errors import CheckpointError, InputError, QatVsamError, explain
from qat_vsam.export.bits import pack_codes, unpack_codes
from qat_vsam.export.files import read_bytes
from qat_vsam.export.grid import Grid
from qat_vsam.export.integer import integer_model
from qat_vsam.export.integer_layers import IntegerLayer, IntegerTensor, integer_layer, row_shape
from qat_vsam.models import build_model, is_trusted
from qat_vsam.quant.attention import call_projections
from qat_vsam.quant.borders import Border, borders, put_at
from qat_vsam.quant.prepare import LAYERS
from qat_vsam.quant.readers import call_children
from qat_vsam.quant.replace import replace_modules

FORMAT = "qat_vsam.packed"
VERSION = 1
_AGAIN = "export the model again, or fetch the file again"


def to_packed(model: nn.Module, builder: Mapping[str, Any] | None = None) -> bytes:
    """The packed file of a fake-quantized (or float) model, as bytes.

    Args:
        model: prepared and calibrated; a float model gives a plain safetensors file with the same metadata.
        builder: {"name": ..., "options": {...}} for `build_model`; None takes `model.builder` if it is there.

    Raises:
        InputError: a layer cannot be written as integers, or the model holds state that is no tensor.

    Example:
        >>> import qat_vsam as qv
        >>> len(to_packed(qv.build_model("digits_cnn", seed=0))) > 0
        True
    """
    integers = integer_model(model).cpu()
    tensors: dict[str, Tensor] = {}
    for key, value in integers.state_dict().items():
        if not isinstance(value, Tensor):
            raise InputError(
                explain(
                    key,
                    f"state of type {type(value).__name__}",
                    "tensors only",
                    "export the model without it",
                )
            )
        if not key.endswith("num_batches_tracked"):  # counts training steps; inference has no use for it
            tensors[key] = value.detach().clone().contiguous()
    layers: dict[str, dict[str, Any]] = {}
    for name, layer in integers.named_modules():
        if isinstance(layer, IntegerLayer):
            grid = layer.weight_grid
            key = f"{name}.weight_codes" if name else "weight_codes"
            layers[name] = {"shape": list(layer.weight_codes.shape), "weight": grid.to_dict()}
            if layer.activation_grid is not None:
                layers[name]["activation"] = layer.activation_grid.to_dict()
            tensors[key] = pack_codes(layer.weight_codes, grid.bits, grid.lowest, grid.stride)
    tensors_between = {
        border.name: {**asdict(border), "grid": tensor.grid.to_dict()}
        for border, tensor in borders(integers)
        if isinstance(tensor, IntegerTensor)
    }
    content = {
        "version": VERSION,
        "builder": dict(builder) if builder else getattr(model, "builder", None),
        "layers": layers,
    }
    if tensors_between:
        content["tensors"] = tensors_between
    try:
        text = json.dumps(content, separators=(",", ":"))
    except TypeError as error:
        raise InputError(
            explain("builder", error, "options that JSON can hold", "pass builder= with plain options")
        ) from error
    metadata = {"format": FORMAT, "content": text, "sha256": _digest(text, tensors)}
    return safetensors.torch.save(tensors, metadata)


def read_packed(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The metadata and the (still packed) tensors of a packed file, checked to the last bit.

    Raises:
        CheckpointError: the file is missing, truncated, changed, or written by another version.
    """
    path = Path(path)
    data = read_bytes(path)
    try:
        tensors = safetensors.torch.load(data)
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
        text, digest, name = metadata["content"], metadata["sha256"], metadata["format"]
        content = json.loads(text)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(explain(str(path), f"an unreadable file ({error})", "a packed model", _AGAIN)) from error
    if name != FORMAT or _digest(text, tensors) != digest:
        got = f"format {name!r}" if name != FORMAT else "content that its checksum does not fit"
        raise CheckpointError(explain(str(path), got, f"an unchanged {FORMAT} file", _AGAIN))
    if content["version"] != VERSION:
        raise CheckpointError(
            explain(
                str(path),
                f"version {content['version']}",
                f"version {VERSION}",
                "install the matching qat-vsam",
            )
        )
    return content, tensors


def load_packed(path: str | Path, model: nn.Module | None = None, *, trust_builder: bool = False) -> nn.Module:
    """Rebuild the integer model from a packed file.

    Args:
        path: the packed file.
        model: the architecture, in float or prepared; it is copied, and its weights do not matter. None
            builds it from the file's own metadata through `build_model`.
        trust_builder: allow the file to name a `package.module:function` that is then imported and called.
            Off by default, because a file from elsewhere could name any function.

    Returns:
        The model in evaluation mode, on the CPU.

    Raises:
        CheckpointError: the file is broken, or belongs to another architecture.
        InputError: the file does not say how to build the model, or names a function and is not trusted.

    Example:
        >>> import tempfile, qat_vsam as qv
        >>> model = qv.build_model("digits_cnn", seed=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "model.safetensors")
        ...     _ = path.write_bytes(to_packed(model))
        ...     loaded = load_packed(path)
        >>> x = torch.rand(2, 1, 8, 8)
        >>> torch.equal(loaded(x), model.eval()(x))
        True
    """
    path = Path(path)
    content, tensors = read_packed(path)
    built = _build(path, content["builder"], trust_builder) if model is None else copy.deepcopy(model)
    built = built.cpu().eval().requires_grad_(False)
    try:
        return _fill(path, built, content, tensors)
    except QatVsamError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        got = f"contents that do not fit together ({error!r})"
        raise CheckpointError(explain(str(path), got, f"a {FORMAT} file", _AGAIN)) from error


def _fill(path: Path, built: nn.Module, content: Mapping[str, Any], tensors: dict[str, Tensor]) -> nn.Module:
    """Put integer layers and tensors in place and load everything else."""
    layers = content["layers"]
    call_children(built)
    if not set(layers) <= {name for name, _ in built.named_modules()}:
        call_projections(built)  # those of an attention are layers only in a prepared model
    modules = dict(built.named_modules())
    replacements: dict[nn.Module, nn.Module] = {}
    for name, row in layers.items():
        place = modules.get(name)
        if not isinstance(place, LAYERS) or row_shape(place) != row["shape"]:
            got = "no such layer" if place is None else f"a {type(place).__name__}"
            expected = f"a layer with a weight of shape {row['shape']}"
            raise CheckpointError(explain(f"{path}: {name}", got, expected, "pass the model that was exported"))
        replacements[place] = _unpack_layer(name, place, row, tensors)
    built = replace_modules(built, replacements)
    for name, row in content.get("tensors", {}).items():
        if row["module"] not in modules:
            advice = "pass the model that was exported"
            raise CheckpointError(explain(f"{path}: {name}", "no such module", "a module of the model", advice))
        border = Border(row["module"], row["side"], row["copies"])
        tensor = IntegerTensor(tensors[f"{name}.scale"], Grid(**row["grid"]))
        put_at(built.get_submodule(border.module), border, tensor)
    _load_state(path, built, tensors)
    return built


def _unpack_layer(name: str, place: nn.Module, row: dict[str, Any], tensors: dict[str, Tensor]) -> IntegerLayer:
    """An integer layer with its codes; `tensors` then holds them unpacked, too."""
    prefix = f"{name}." if name else ""
    grid = Grid(**row["weight"])
    key = f"{prefix}weight_codes"
    flat = unpack_codes(tensors[key], math.prod(row["shape"]), grid.bits, grid.lowest, grid.stride)
    tensors[key] = flat.reshape(row["shape"]).to(grid.carrier)
    scale, bias = tensors[f"{prefix}weight_scale"], tensors.get(f"{prefix}bias")
    if "activation" not in row:
        return integer_layer(place, tensors[key], scale, grid, bias)
    activation = Grid(**row["activation"])
    return integer_layer(place, tensors[key], scale, grid, bias, tensors[f"{prefix}activation_scale"], activation)


def _load_state(path: Path, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    own = {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    differences = [f"missing {key}" for key in own if key not in tensors]
    differences += [f"unexpected {key}" for key in tensors if key not in own]
    differences += [
        f"{key}: {tuple(tensors[key].shape)} in the file, {tuple(own[key].shape)} in the model"
        for key in own
        if key in tensors and tensors[key].shape != own[key].shape
    ]
    if differences:
        raise CheckpointError(
            explain(
                str(path),
                "; ".join(differences[:10]),
                "the tensors of the model",
                "pass the model that was exported",
            )
        )
    model.load_state_dict(tensors, strict=False)


def _build(path: Path, builder: Any, trust: bool) -> nn.Module:
    if not builder:
        raise InputError(
            explain(
                f"{path}: builder",
                "nothing",
                "the name and options of a model",
                "pass the architecture as model=",
            )
        )
    name, options = builder["name"], builder["options"]
    if not is_trusted(name) and not trust:
        raise InputError(
            explain(
                f"{path}: builder",
                f"the function {name}",
                "a model of this package, torchvision, timm or transformers",
                "pass model=, or trust_builder=True if the file is your own",
            )
        )
    try:
        return build_model(name, **options)
    except QatVsamError:
        raise
    except Exception as error:  # a builder may raise anything when the options do not fit
        raise CheckpointError(explain(f"{path}: builder", builder, "a model that can be built", str(error))) from error


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for key in sorted(tensors):
        tensor = tensors[key]
        digest.update(f"\0{key}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
