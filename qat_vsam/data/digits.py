"""The 1,797 handwritten digits of 8 x 8 pixels that scikit-learn brings along: nothing to download."""

from __future__ import annotations

import torch

from qat_vsam.data.dataset import Rows, class_balanced_order, rows_in_memory

CLASSES = tuple("0123456789")
TRAIN_SIZE = 300
VALIDATION_SIZE = 500
_REST_SIZE = TRAIN_SIZE + VALIDATION_SIZE


def digits_rows() -> tuple[Rows, Rows]:
    """The rows to train and validate on (800) and the test rows (997), the same for every seed.

    Pixel values 0..16 are scaled to 0..255.

    Example:
        >>> train, test = digits_rows()
        >>> len(train.labels), len(test.labels)
        (800, 997)
    """
    # a second of imports, which no other dataset should pay for
    from sklearn.datasets import load_digits

    source = load_digits()
    images = torch.from_numpy(source.images * (255 / 16)).round().to(torch.uint8).unsqueeze(1)  # (1797, 1, 8, 8)
    labels = torch.from_numpy(source.target).to(torch.int64)
    order = class_balanced_order(labels, seed=0)
    # the head of the order is where the classes are equally many
    rest, test = order[:_REST_SIZE].sort().values, order[_REST_SIZE:].sort().values
    return rows_in_memory(images[rest], labels[rest]), rows_in_memory(images[test], labels[test])
