"""What a dataset is drawn from: the test images stay the same, a seed chooses who trains and who validates."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from qat_vsam.data.dataset import Dataset, Rows, split_rows, with_wrong_labels
from qat_vsam.data.decoded import keep_decoded


class Source(Protocol):
    """Something that datasets are drawn from."""

    def draw(
        self,
        *,
        train_size: int | None = None,
        validation_size: int | None = None,
        validation_from: str = "train",
        label_noise: float = 0.0,
        seed: int = 0,
    ) -> Dataset:
        """Training and validation images by this seed; see `load_dataset`.

        Raises:
            DataError: sizes or a share that do not fit.
        """

    def kept(self) -> Source:
        """The same source, which decodes no image twice; for a process that draws from it again and again."""


@dataclass(frozen=True)
class RowSource:
    """Training rows and test rows.

    Attributes:
        name: of the dataset.
        classes: class names.
        train: rows that train and validate.
        test: rows to test on.
        usual_train_size: number of training images where none is asked for; None: all that validation leaves.
        usual_validation_size: number of validation images out of `train` where none is asked for; None: a tenth.
    """

    name: str
    classes: tuple[str, ...]
    train: Rows
    test: Rows
    usual_train_size: int | None = None
    usual_validation_size: int | None = None

    def draw(
        self,
        *,
        train_size: int | None = None,
        validation_size: int | None = None,
        validation_from: str = "train",
        label_noise: float = 0.0,
        seed: int = 0,
    ) -> Dataset:
        """See `Source`."""
        if train_size is None:
            train_size = self.usual_train_size
        if validation_size is None and validation_from == "train":
            validation_size = self.usual_validation_size
        data = split_rows(
            self.name,
            self.classes,
            self.train,
            self.test,
            train_size=train_size,
            validation_size=validation_size,
            validation_from=validation_from,
            seed=seed,
        )
        return _spoiled(data, label_noise, seed)

    def kept(self) -> RowSource:
        """See `Source`."""
        return replace(self, train=keep_decoded(self.train), test=keep_decoded(self.test))


@dataclass(frozen=True)
class ReadySource:
    """A dataset that somebody has split already: only its wrong labels can be drawn."""

    dataset: Dataset

    def draw(
        self,
        *,
        train_size: int | None = None,
        validation_size: int | None = None,
        validation_from: str = "train",
        label_noise: float = 0.0,
        seed: int = 0,
    ) -> Dataset:
        """See `Source`; the sizes are the dataset's own."""
        return _spoiled(replace(self.dataset, drawn=False), label_noise, seed)

    def kept(self) -> ReadySource:
        """See `Source`."""
        return self


def _spoiled(data: Dataset, share: float, seed: int) -> Dataset:
    train = with_wrong_labels(data.train, len(data.classes), share, seed)
    return replace(data, train=train, drawn=data.drawn or train is not data.train)
