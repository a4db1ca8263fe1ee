"""Datasets by name: `digits`, `cifar10`, `cifar100`, `image_folder`, `package.module:function`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from qat_vsam.data.cifar import cifar_rows
from qat_vsam.data.dataset import Dataset, Rows, rows_in_memory, split_rows, with_wrong_labels
from qat_vsam.data.digits import CLASSES, TRAIN_SIZE, VALIDATION_SIZE, digits_rows
from qat_vsam.data.folder import folder_rows
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
        seed: of the split and of the wrong labels. Runs that differ in their seed share it, so that they see
            the same images.
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
    sizes: dict[str, Any] = {
        "train_size": train_size,
        "validation_size": validation_size,
        "validation_from": validation_from,
        "seed": seed,
    }
    data = _load(name, root, sizes, options)
    return replace(data, train=with_wrong_labels(data.train, len(data.classes), label_noise, seed))


def _load(name: str, root: str | Path | None, sizes: dict[str, Any], options: dict[str, Any]) -> Dataset:
    if is_user_function(name):
        return _from_function(name, None if root is None else Path(root), options, sizes)
    if name not in _OPTIONS:
        raise DataError(explain("data", repr(name), "a known dataset", did_you_mean(name, list_datasets())))
    known = _OPTIONS[name]
    for option in options:
        if option not in known:
            advice = did_you_mean(option, known) if known else "remove it"
            raise DataError(explain(f"data {name}.{option}", "an unknown option", "a known one", advice))
    if name == "digits":
        train, test = digits_rows()
        usual = {"train_size": TRAIN_SIZE}
        if sizes["validation_from"] == "train":
            usual["validation_size"] = VALIDATION_SIZE
        sizes = sizes | {key: size for key, size in usual.items() if sizes[key] is None}
        return split_rows(name, CLASSES, train, test, **sizes)
    folder = _existing(name, root)
    if name == "image_folder":
        if not isinstance(options.get("size"), int) or options["size"] < 1:
            raise DataError(
                explain("data image_folder.size", options.get("size"), "a number of pixels", "set size, e.g. 64")
            )
        train, test, classes = folder_rows(folder, **options)
    else:
        train, test, classes = cifar_rows(name, folder, **options)
    return split_rows(name, classes, train, test, **sizes)


def _existing(name: str, root: str | Path | None) -> Path:
    if root is None or not Path(root).is_dir():
        got = "nothing" if root is None else f"{root}, which is no folder"
        raise DataError(
            explain(
                f"data root of {name}",
                got,
                "the folder that holds the data",
                "give --data or set QAT_VSAM_DATA",
            )
        )
    return Path(root)


def _from_function(name: str, root: Path | None, options: dict[str, Any], sizes: dict[str, Any]) -> Dataset:
    function = import_function(name, key="data")
    check_options(function, {"root": root, **options}, key=f"data {name}")
    result = function(root=root, **options)
    if isinstance(result, Dataset):
        return result
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
    return split_rows(name, tuple(str(label) for label in range(count)), train, test, **sizes)


def _rows(images: Any, labels: Any) -> Rows:
    return rows_in_memory(torch.as_tensor(images), torch.as_tensor(labels).to(torch.int64))
