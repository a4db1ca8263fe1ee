"""What a dataset is: images and labels in three disjoint parts.

A source (digits, CIFAR-10, a folder, a function of yours) gives its training and test images as `Rows`: all
labels, and images on demand. `split_rows` chooses who trains and who validates by label alone, so that only
the chosen images are ever decoded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qat_vsam.errors import DataError, explain

_TEST_SEED = 0
_LABEL_NOISE = 3  # a number that no other draw from a seed is mixed with


@dataclass
class Split:
    """Images with their labels.

    Attributes:
        images: (N, C, H, W), uint8 in 0..255; a user's dataset may hold floating point numbers instead.
        labels: (N,), int64.

    Raises:
        DataError: shapes, types or lengths that do not fit.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dim() != 4 or not (images.dtype == torch.uint8 or images.is_floating_point()):
            raise DataError(
                explain(
                    "images",
                    f"{images.dtype} of shape {list(images.shape)}",
                    "uint8 or floating point of shape (N, C, H, W)",
                    "convert the images",
                )
            )
        if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
            raise DataError(
                explain(
                    "labels",
                    f"{labels.dtype} of shape {list(labels.shape)}",
                    f"int64 of shape ({len(images)},)",
                    "give one integer class per image",
                )
            )

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: str | torch.device) -> Split:
        """The split on a device; itself where it is there already."""
        images, labels = self.images.to(device), self.labels.to(device)
        return self if images is self.images and labels is self.labels else Split(images, labels)


@dataclass
class Dataset:
    """A named dataset: nothing is ever chosen on `test`.

    Attributes:
        name: as given to `load_dataset`.
        classes: the class names; a label is an index into them.
        train: what the weights learn from.
        validation: what choices are made on; disjoint from the other two.
        test: what is reported.
        drawn: whether another seed gives other training images or other wrong labels.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    drawn: bool = True


@dataclass
class Rows:
    """Labels of a source, and its images on demand.

    Attributes:
        labels: (N,), int64.
        images: given row numbers (M,), returns their images (M, C, H, W).
        in_memory: whether the images are there already, and are not made when they are asked for.
    """

    labels: Tensor
    images: Callable[[Tensor], Tensor]
    in_memory: bool = False

    def take(self, index: Tensor) -> Split:
        """The split of these rows, in ascending order, which keeps the order of the source."""
        index = index.sort().values
        return Split(self.images(index), self.labels[index])


def rows_in_memory(images: Tensor, labels: Tensor) -> Rows:
    """`Rows` over tensors that are already there."""
    split = Split(images, labels)
    return Rows(split.labels, lambda index: split.images[index], in_memory=True)


def class_balanced_order(labels: Tensor, seed: int) -> Tensor:
    """A random order of the rows in which every prefix holds the classes equally often.

    Each class is shuffled; then the order takes one row of every class in turn, in random sequence, until the
    classes run out. So a prefix of length n holds floor(n / K) or ceil(n / K) rows of each of K classes, as
    long as every class has that many, and a larger subset contains each smaller one.

    Args:
        labels: (N,), int64.
        seed: the order is a pure function of the labels and this number.

    Returns:
        Row numbers (N,), each once.

    Example:
        >>> labels = torch.tensor([0, 0, 0, 1, 1, 1])
        >>> labels[class_balanced_order(labels, seed=0)[:2]].sort().values
        tensor([0, 1])
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=generator)
    _, counts = labels.unique(return_counts=True)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    first_of_class = (counts.cumsum(0) - counts).repeat_interleave(counts)
    turn = torch.arange(len(labels)) - first_of_class
    within_turn = torch.randperm(len(labels), generator=generator)
    by_class, turn = by_class[within_turn], turn[within_turn]
    return by_class[turn.argsort(stable=True)]


def with_wrong_labels(split: Split, classes: int, share: float, seed: int) -> Split:
    """A share of the labels replaced by another class, each other class as likely as the next.

    round(share * N) rows are drawn without replacement, and of these label becomes (label + d) mod K with d
    uniform in 1..K - 1. Of two shares the larger spoils the rows of the smaller too, with the same wrong labels.

    Args:
        split: left as it is.
        classes: number of classes K.
        share: of the N labels, in 0..1.
        seed: which rows, and which wrong labels, are a pure function of N, K and this number.

    Raises:
        DataError: a share outside 0..1, or fewer than two classes to confuse.

    Example:
        >>> clean = Split(torch.zeros(10, 1, 2, 2), torch.zeros(10, dtype=torch.int64))
        >>> noisy = with_wrong_labels(clean, classes=3, share=0.4, seed=0)
        >>> int((noisy.labels != clean.labels).sum())
        4
    """
    if not 0 <= share <= 1:
        raise DataError(explain("label_noise", share, "a share in 0..1", "correct it"))
    if share == 0:
        return split
    if classes < 2:
        raise DataError(explain("label_noise", f"{share} of {classes} class", "two classes or more", "set it to 0"))
    # a stream of its own: the same seed has already ordered the rows
    mixed = np.random.SeedSequence([_LABEL_NOISE, seed]).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(mixed[0]))
    shift = torch.randint(1, classes, (len(split),), generator=generator)
    spoiled = torch.randperm(len(split), generator=generator)[: round(share * len(split))]
    labels = split.labels.clone()
    labels[spoiled] = (labels[spoiled] + shift[spoiled]) % classes
    return Split(split.images, labels)


def split_rows(
    name: str,
    classes: tuple[str, ...],
    train: Rows,
    test: Rows,
    *,
    train_size: int | None,
    validation_size: int | None,
    validation_from: str,
    seed: int,
) -> Dataset:
    """Cut a source into train, validation and test, with equal shares of the classes.

    Args:
        name: of the dataset.
        classes: class names.
        train: the training rows of the source.
        test: the test rows of the source.
        train_size: number of training images; None takes all that validation leaves.
        validation_size: number of validation images; None takes a tenth of the training rows, or half of the
            test rows.
        validation_from: "train" takes validation images out of the training rows; "test" takes them out of
            the test rows, for nets whose checkpoint has seen every training row. `Dataset.test` is then the
            rest.
        seed: of the order in which training and validation images are taken out of the training rows. What is taken
            out of the test rows never depends on it: no image is tested on under one seed and chosen on under
            another.

    Raises:
        DataError: the sizes do not fit the rows, or a size is negative.

    Example:
        >>> rows = rows_in_memory(torch.zeros(40, 1, 2, 2), torch.arange(40) % 4)
        >>> dataset = split_rows("toy", ("a", "b", "c", "d"), rows, rows, train_size=20, validation_size=8,
        ...                      validation_from="train", seed=0)
        >>> len(dataset.train), len(dataset.validation), len(dataset.test)
        (20, 8, 40)
    """
    for key, size in (("train_size", train_size), ("validation_size", validation_size)):
        if size is not None and size < 0:
            raise DataError(explain(key, size, "a number of images, or none for the default", "correct it"))
    train_order = class_balanced_order(train.labels, seed)
    if validation_from == "train":
        count = len(train_order) // 10 if validation_size is None else validation_size
        validation_index, train_order = train_order[:count], train_order[count:]
        validation_rows, available, test_index = train, len(train.labels), torch.arange(len(test.labels))
    elif validation_from == "test":
        test_order = class_balanced_order(test.labels, _TEST_SEED)
        count = len(test_order) // 2 if validation_size is None else validation_size
        validation_index, test_index = test_order[:count], test_order[count:]
        validation_rows, available = test, len(test.labels)
    else:
        raise DataError(explain("validation_from", repr(validation_from), '"train" or "test"', "choose one of the two"))
    if count > available:
        raise DataError(explain("validation_size", count, f"at most {available} images", "ask for fewer images"))
    if train_size is not None and train_size > len(train_order):
        raise DataError(
            explain(
                "train_size",
                train_size,
                f"at most the {len(train_order)} images of {name} that are not for validation",
                "ask for fewer images, or for a smaller validation_size",
            )
        )
    return Dataset(
        name=name,
        classes=classes,
        train=train.take(train_order[:train_size]),
        validation=validation_rows.take(validation_index),
        test=test.take(test_index),
        drawn=len(train_order[:train_size]) < len(train.labels),
    )
