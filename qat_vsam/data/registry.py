"""Datasets by name: `digits`, `cifar10`, `cifar100`, `image_folder`, `package.module:function`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from qat_vsam.data.cifar import cifar_rows
from qat_vsam.data.dataset import Dataset, Rows, rows_in_memory
from qat_vsam.data.digits import CLASSES, TRAIN_SIZE, VALIDATION_SIZE, digits_rows
from qat_vsam.data.folder import folder_rows
from qat_vsam.data.source import ReadySource, RowSource, Source
from qat_vsam.errors import DataError, did_you_mean, explain
from qat_vsam.models import check_options, import_function, is_user_function

_OPTIONS: dict[str, tuple[str, ...]] = {
    "digits": (),
    "cifar10": ("size", "download", "progress"),
    "cifar100": ("size", "download", "progress"),
    "image_folder": ("size", "progress"),
}


def list_datasets() -> list[str]:
    """The names that `load_dataset` knows, and the open form.

    Example:
        >>> "digits" in list_datasets()
        True
    """
    return [*_OPTIONS, "package.module:function"]


def load_dataset(
    name: str,
    root: str | Path | None = None,
    *,
    train_size: int | None = None,
    validation_size: int | None = None,
    validation_from: str = "train",
    label_noise: float = 0.0,
    seed: int = 0,
    **options: Any,
) -> Dataset:
    """Load a dataset and split it; images stay uint8.

    Args:
        name: one of `list_datasets()`. A function of yours is called as `function(root=root, **options)` and
            returns a `Dataset`, or a pair (train, test) of pairs (images, labels) as tensors or arrays.
        root: data folder; "digits" needs none.
        train_size: number of training images, the classes equally often; None takes all that validation
            leaves (digits: 300).
        validation_size: number of validation images; None takes a tenth of the training images (digits:
            500), or half of the test images.
        validation_from: "train", or "test" for nets that have seen every training image.
        label_noise: share of the training labels replaced by another class; validation and test stay clean.
        seed: chooses the training and the validation images, and the wrong labels. The test images are the same for
            every seed.
        options: cifar10 and cifar100: `download` and `size`, the side in pixels, 4, 8, 16 or 32;
            image_folder: `size`, which it demands; all three: `progress(done, total)`, called while images
            are decoded. Otherwise arguments of your function.

    Raises:
        DataError: unknown name or option, missing or broken files, sizes that do not fit.
        InputError: a function that cannot be imported.

    Example:
        >>> digits = load_dataset("digits")
        >>> len(digits.train), len(digits.validation), len(digits.test)
        (300, 500, 997)
    """
    return load_source(name, root, **options).draw(
        train_size=train_size,
        validation_size=validation_size,
        validation_from=validation_from,
        label_noise=label_noise,
        seed=seed,
    )


def load_source(name: str, root: str | Path | None = None, **options: Any) -> Source:
    """Open a dataset without drawing from it; `load_dataset` is this and one draw.

    Args:
        name, root, options: see `load_dataset`.

    Raises:
        DataError: unknown name or option, missing or broken files.
        InputError: a function that cannot be imported.

    Example:
        >>> source = load_source("digits")
        >>> one, other = source.draw(seed=0), source.draw(seed=1)
        >>> torch.equal(one.train.images, other.train.images), torch.equal(one.test.images, other.test.images)
        (False, True)
    """
    check_source(name, root, **options)
    if is_user_function(name):
        return _from_function(name, None if root is None else Path(root), options)
    if name == "digits":
        train, test = digits_rows()
        return RowSource(name, CLASSES, train, test, TRAIN_SIZE, VALIDATION_SIZE)
    folder = _existing(name, root)
    if name == "image_folder":
        train, test, classes = folder_rows(folder, **options)
    else:
        train, test, classes = cifar_rows(name, folder, **options)
    return RowSource(name, classes, train, test)


def check_source(name: str, root: str | Path | None = None, **options: Any) -> None:
    """Whether there is such a dataset, with such options and a root to read it from; no image is read.

    Args:
        name, root, options: see `load_dataset`.

    Raises:
        DataError: unknown name or option, or no root.
        InputError: a function that cannot be imported.

    Example:
        >>> check_source("digits")
    """
    if is_user_function(name):
        check_options(import_function(name, key="data"), {"root": root, **options}, key=f"data {name}")
        return
    if name not in _OPTIONS:
        raise DataError(explain("data", repr(name), "a known dataset", did_you_mean(name, list_datasets())))
    known = _OPTIONS[name]
    for option in options:
        if option not in known:
            advice = did_you_mean(option, known) if known else "remove it"
            raise DataError(explain(f"data {name}.{option}", "an unknown option", "a known one", advice))
    progress = options.get("progress")
    if progress is not None and not callable(progress):
        rule = "a function of two numbers, for Python only"
        raise DataError(explain(f"data {name}.progress", repr(progress), rule, "leave it out of recipes"))
    if name == "image_folder" and (not isinstance(options.get("size"), int) or options["size"] < 1):
        advice = "set data.options.size, e.g. 64"
        raise DataError(explain("data image_folder.size", options.get("size"), "a number of pixels", advice))
    if name != "digits":
        _existing(name, root)


def _existing(name: str, root: str | Path | None) -> Path:
    if root is None or not Path(root).is_dir():
        got = "nothing" if root is None else f"{root}, which is no folder"
        raise DataError(
            explain(
                f"data root of {name}",
                got,
                "the folder that holds the data",
                "give --data or data.root, or set QAT_VSAM_DATA",
            )
        )
    return Path(root)


def _from_function(name: str, root: Path | None, options: dict[str, Any]) -> Source:
    result = import_function(name, key="data")(root=root, **options)
    if isinstance(result, Dataset):
        return ReadySource(result)
    try:
        train, test = (_rows(*part) for part in result)
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            explain(
                f"data {name}",
                f"a {type(result).__name__} ({error})",
                "a Dataset, or (train, test) with pairs (images, labels) of tensors or arrays",
                "change what the function returns",
            )
        ) from error
    count = 1 + int(max(train.labels.max(), test.labels.max()))
    return RowSource(name, tuple(str(label) for label in range(count)), train, test)


def _rows(images: Any, labels: Any) -> Rows:
    return rows_in_memory(torch.as_tensor(images), torch.as_tensor(labels).to(torch.int64))
