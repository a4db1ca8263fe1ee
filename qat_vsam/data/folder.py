"""Image folders: `root/train/CLASS/image.png`, and the same for `test` (or `val`)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from qat_vsam.data.dataset import Rows
from qat_vsam.data.images import Progress, decode_images
from qat_vsam.errors import DataError, explain


def folder_rows(root: Path, *, size: int, progress: Progress | None = None) -> tuple[Rows, Rows, tuple[str, ...]]:
    """The training rows, the test rows and the class names. Images are read when rows are taken.

    Args:
        root: holds `train`, and `test` or, without that, `val`; each has one subfolder per class.
        size: every image is resized to size x size pixels.
        progress: called with the number of decoded images and their total.

    Raises:
        DataError: a folder is missing, or the classes of the two differ.
    """
    train_folder = root / "train"
    test_folder = next((root / name for name in ("test", "val") if (root / name).is_dir()), root / "test")
    train, classes = _folder(train_folder, size, progress)
    test, test_classes = _folder(test_folder, size, progress)
    if classes != test_classes:
        different = sorted(set(classes) ^ set(test_classes))
        raise DataError(
            explain(
                f"data {test_folder}",
                f"other classes than in train ({', '.join(different[:10])})",
                "one subfolder for each class of train",
                "add or remove the subfolders",
            )
        )
    return train, test, classes


def _folder(folder: Path, size: int, progress: Progress | None) -> tuple[Rows, tuple[str, ...]]:
    # a second of imports, which no other dataset should pay for
    from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

    try:
        names, numbers = find_classes(folder)
        samples = make_dataset(folder, class_to_idx=numbers, extensions=IMG_EXTENSIONS)
    except OSError as error:  # a missing folder, or one without classes or without images
        raise DataError(
            explain(
                f"data {folder}",
                f"no images ({error})",
                "CLASS/IMAGE files in a train and a test folder",
                "point --data or QAT_VSAM_DATA at the folder that holds train",
            )
        ) from error
    paths = [path for path, _ in samples]
    labels = torch.tensor([label for _, label in samples])
    return Rows(labels, partial(_read, paths, size, progress)), tuple(names)


def _read(paths: list[str], size: int, progress: Progress | None, index: Tensor) -> Tensor:
    chosen = [paths[i] for i in index.tolist()]
    return decode_images(chosen, [f"data {path}" for path in chosen], size=size, progress=progress)
