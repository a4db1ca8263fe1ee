"""Weights from a file, without executing anything that the file contains.

A `.th`, `.pt` or `.pth` file is a pickle by nature. It is read with `weights_only=True`, which builds
tensors and plain containers and refuses every other instruction; a `.safetensors` file holds no instructions
at all.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from qat_vsam.errors import CheckpointError, explain

_WRAPPERS = ("state_dict", "model")
_SHOWN = 4


def load_checkpoint(model: nn.Module, path: str | Path) -> None:
    """Copy the tensors of a file into a model, all of them or none.

    The tensors may lie at the top of the file or under `state_dict` or `model`; the prefix `module.`, which
    `DataParallel` adds, is dropped.

    Args:
        model: receives the tensors; keys and shapes must be those of its `state_dict()`. Counters named
            `num_batches_tracked`, which old files lack, may be absent.
        path: a `.th`, `.pt`, `.pth` or `.safetensors` file.

    Raises:
        CheckpointError: the file is missing, unreadable, would execute code, or belongs to another model.
            Then the model is as before.

    Example:
        >>> import tempfile
        >>> from torch import nn
        >>> source, target = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"state_dict": source.state_dict()}, f"{folder}/linear.pt")
        ...     load_checkpoint(target, f"{folder}/linear.pt")
        >>> torch.equal(source.weight, target.weight)
        True
    """
    path = Path(path)
    tensors = read_tensors(path)
    differences = _differences(model.state_dict(), tensors)
    if differences:
        raise CheckpointError(
            explain(
                f"checkpoint {path}",
                differences,
                f"the tensors of {type(model).__name__}",
                "choose the model and options that this file was saved from",
            )
        )
    _refuse_nonfinite(model.state_dict(), tensors, path)
    model.load_state_dict(tensors, strict=False)


def _refuse_nonfinite(model: Mapping[str, Tensor], file: Mapping[str, Tensor], path: Path) -> None:
    """Numbers that are not finite, or would not be in the model's type, where the model's own are."""
    broken = []
    for key, value in file.items():
        own = model[key]
        if not isinstance(own, Tensor) or not own.is_floating_point() or own.is_meta:
            continue
        if own.isfinite().all() and not value.to(own.dtype).isfinite().all():
            broken.append(key)
    if broken:
        names = ", ".join(broken[:_SHOWN]) + (", ..." if len(broken) > _SHOWN else "")
        raise CheckpointError(
            explain(
                f"checkpoint {path}",
                f"NaN or infinity in {len(broken)} tensors: {names}",
                f"finite numbers of the model's type in the tensors of {path.name}",
                "take a checkpoint from before the training diverged",
            )
        )


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The named tensors of a checkpoint file, on the CPU.

    Args:
        path: a `.th`, `.pt`, `.pth` or `.safetensors` file.

    Raises:
        CheckpointError: the file is missing, unreadable, would execute code, or holds no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(explain(f"checkpoint {path}", "no such file", "an existing file", "check the path"))
    if path.suffix not in (".th", ".pt", ".pth", ".safetensors"):
        raise CheckpointError(
            explain(
                f"checkpoint {path}",
                f"suffix {path.suffix!r}",
                "one of .th, .pt, .pth, .safetensors",
                "rename the file after its format",
            )
        )
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _load_without_code(path)
    except Exception as error:
        # broken bytes make the parsers raise almost anything: KeyError, EOFError, RecursionError ...
        raise CheckpointError(
            explain(
                f"checkpoint {path}",
                _reason(error),
                "a file of tensors and plain containers",
                "fetch the file again, or save model.state_dict() with torch.save or safetensors",
            )
        ) from error
    return _state_dict(content, path)


def _load_without_code(path: Path) -> object:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            # torch stores its records uncompressed; one that claims to unpack to more is a bomb
            if sum(record.file_size for record in archive.infolist()) > path.stat().st_size:
                raise ValueError("an archive whose records unpack to more than the file")
            # torch.load looks at no checksum: a flipped bit would be another weight
            if (altered := archive.testzip()) is not None:
                raise ValueError(f"its record {altered} does not match its checksum")
    with warnings.catch_warnings():
        # on unusual pickle protocols and archives, which load or are refused all the same
        warnings.simplefilter("ignore", UserWarning)
        return torch.load(path, map_location="cpu", weights_only=True)


def _reason(error: Exception) -> str:
    """One line on why a file cannot be read: the forbidden instruction where there is one."""
    message = str(error)
    forbidden = re.search(r"GLOBAL ([\w.]+)", message)
    if forbidden:
        return f"a pickle that calls {forbidden[1]}, refused"
    # torch puts the cause behind these words, and around it advice to load the file unsafely
    cause = message.rpartition("WeightsUnpickler error:")[2].partition(". In PyTorch")[0].strip()
    first_line = cause.splitlines()[0].strip()[:200] if cause else "it ends early"
    return f"an unreadable file ({type(error).__name__}: {first_line})"


def _state_dict(content: object, path: Path) -> dict[str, Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        found = "an empty dict" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise CheckpointError(_no_state_dict(path, found))
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(_no_state_dict(path, f"{key!r} of type {type(value).__name__}"))
        if value.layout is not torch.strided or value.is_complex() or value.is_quantized:
            raise CheckpointError(_no_state_dict(path, f"{key!r}, no dense real tensor"))
        if value.is_meta:
            raise CheckpointError(_no_state_dict(path, f"{key!r}, a tensor on the meta device, without numbers"))
    prefix = "module." if all(key.startswith("module.") for key in content) else ""
    return {key.removeprefix(prefix): value for key, value in content.items()}


def _no_state_dict(path: Path, found: str) -> str:
    return explain(
        f"checkpoint {path}",
        found,
        "named tensors, at the top or under 'state_dict' or 'model'",
        "save model.state_dict()",
    )


def _differences(model: Mapping[str, Tensor], file: Mapping[str, Tensor]) -> str:
    """What keeps a file from fitting a model: missing and unexpected keys, other shapes; or nothing."""
    kinds = {
        "missing": [
            f"{key} {_shape(model[key])}"
            for key in model
            if key not in file and not key.endswith("num_batches_tracked")
        ],
        "unexpected": [f"{key} {_shape(file[key])}" for key in file if key not in model],
        "of another shape": [
            f"{key} {_shape(file[key])} instead of {_shape(model[key])}"
            for key in model
            if key in file and _shape(file[key]) != _shape(model[key])
        ],
    }
    return "; ".join(
        f"{len(keys)} {kind}: {', '.join(keys[:_SHOWN])}{', ...' if len(keys) > _SHOWN else ''}"
        for kind, keys in kinds.items()
        if keys
    )


def _shape(value: object) -> str:
    # the extra state of a module need not be a tensor
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__
