"""CIFAR-10 and CIFAR-100, from parquet files of the hub's layout or from torchvision's download folder."""

from __future__ import annotations

from pathlib import Path

import torch

from qat_vsam.data.dataset import Rows, rows_in_memory
from qat_vsam.data.images import Progress, shrink
from qat_vsam.data.parquet import read_parquet
from qat_vsam.errors import DataError, explain

SIDES = (4, 8, 16, 32)  # pixels; the published images have 32
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# name: (class names where a parquet file holds none, torchvision's class, torchvision's folder)
_SOURCES: dict[str, tuple[tuple[str, ...] | None, str, str]] = {
    "cifar10": (CIFAR10_CLASSES, "CIFAR10", "cifar-10-batches-py"),
    "cifar100": (None, "CIFAR100", "cifar-100-python"),
}


def cifar_rows(
    name: str, root: Path, *, size: int | None = None, download: bool = False, progress: Progress | None = None
) -> tuple[Rows, Rows, tuple[str, ...]]:
    """The training rows, the test rows and the class names.

    Searched under `root` and `root/NAME`: `train-*.parquet` and `test-*.parquet`, there or in a subfolder
    that the hub makes, then torchvision's folder (`cifar-10-batches-py`). The latter is a pickle;
    torchvision opens it only if its checksum is that of the published file.

    Args:
        name: "cifar10" or "cifar100".
        root: data folder.
        size: side of the images in pixels, one of 4, 8, 16, 32, made by `shrink` as they are read; None leaves 32.
        download: let torchvision fetch the files into `root/NAME` if nothing is there.
        progress: called with the number of decoded images and their total.

    Raises:
        DataError: nothing found, a broken file, or another size.
    """
    if size is not None and size not in SIDES:
        raise DataError(
            explain(f"data {name}.size", repr(size), f"one of {', '.join(map(str, SIDES))}", "correct it or remove it")
        )
    train, test, classes = _full_size_rows(name, root, download=download, progress=progress)
    if size is None:
        return train, test, classes
    return _shrunk(train, size), _shrunk(test, size), classes


def _shrunk(rows: Rows, side: int) -> Rows:
    return Rows(rows.labels, lambda index: shrink(rows.images(index), side))


def _full_size_rows(
    name: str, root: Path, *, download: bool, progress: Progress | None
) -> tuple[Rows, Rows, tuple[str, ...]]:
    classes, torchvision_class, folder = _SOURCES[name]
    places = [base / sub for base in (root, root / name) for sub in (".", "plain_text", name, "data")]
    for place in places:
        train, test = sorted(place.glob("train-*.parquet")), sorted(place.glob("test-*.parquet"))
        if train and test:
            train_rows, names = read_parquet(train, classes, progress)
            test_rows, _ = read_parquet(test, names, progress)
            return train_rows, test_rows, names
    for place in (root, root / name):
        if (place / folder).is_dir():
            return _torchvision_rows(torchvision_class, place, download)
    if download:
        return _torchvision_rows(torchvision_class, root / name, download)
    raise DataError(
        explain(
            f"data {root}",
            f"no {name}",
            f"train-*.parquet and test-*.parquet, or {folder}, there or in {name}/",
            "point --data or QAT_VSAM_DATA at the folder, or set the option download=true",
        )
    )


def _torchvision_rows(class_name: str, place: Path, download: bool) -> tuple[Rows, Rows, tuple[str, ...]]:
    # a second of imports, which parquet files do not need
    import torchvision.datasets

    torchvision_class: type[torchvision.datasets.CIFAR10] = getattr(torchvision.datasets, class_name)
    parts = []
    for train in (True, False):
        try:
            source = torchvision_class(place, train=train, download=download)
        except (RuntimeError, OSError) as error:
            raise DataError(
                explain(
                    f"data {place}",
                    f"files that torchvision refuses ({error})",
                    "the published files, unchanged",
                    "remove the folder and fetch it again",
                )
            ) from error
        images = torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous()
        parts.append(rows_in_memory(images, torch.tensor(source.targets)))
    return parts[0], parts[1], tuple(source.classes)
