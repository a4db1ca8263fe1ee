from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qat_vsam.data import Dataset, Split, class_balanced_order, load_dataset, with_wrong_labels
from qat_vsam.errors import DataError


def _keys(split: Split) -> set[bytes]:
    return {image.numpy().tobytes() for image in split.images}


@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=60), seed=st.integers(0, 100))
def test_every_prefix_of_the_order_is_class_balanced(labels: list[int], seed: int) -> None:
    tensor = torch.tensor(labels)
    order = class_balanced_order(tensor, seed)
    assert torch.equal(order.sort().values, torch.arange(len(labels)))
    available = tensor.bincount(minlength=5)
    for n in range(1, len(labels) + 1):
        counts = tensor[order[:n]].bincount(minlength=5)
        # a class may only lag behind the fullest one by more than 1 when it has run out
        assert ((counts >= counts.max() - 1) | (counts == available)).all()


def test_the_order_is_a_function_of_the_seed_alone() -> None:
    labels = torch.arange(50) % 5
    state = torch.get_rng_state()
    assert torch.equal(class_balanced_order(labels, 1), class_balanced_order(labels, 1))
    assert not torch.equal(class_balanced_order(labels, 1), class_balanced_order(labels, 2))
    assert torch.equal(torch.get_rng_state(), state)


def test_digits_are_complete_disjoint_and_scaled_to_bytes() -> None:
    digits = load_dataset("digits")
    parts = (digits.train, digits.validation, digits.test)
    assert [len(part) for part in parts] == [300, 500, 997]
    assert len(_keys(digits.train) | _keys(digits.validation) | _keys(digits.test)) == 1797
    assert digits.train.images.shape[1:] == (1, 8, 8)
    assert digits.train.images.dtype == torch.uint8
    assert torch.equal(digits.test.images.unique(), torch.tensor([round(v * 255 / 16) for v in range(17)]))
    assert digits.train.labels.bincount().tolist() == [30] * 10
    assert digits.classes == tuple("0123456789")


@pytest.mark.parametrize("validation_from", ["train", "test"])
@pytest.mark.parametrize("train_size", [50, 200])
def test_parts_are_disjoint_and_of_the_sizes_asked_for(validation_from: str, train_size: int) -> None:
    data = load_dataset("digits", train_size=train_size, validation_size=100, validation_from=validation_from, seed=5)
    assert len(data.train) == train_size
    assert len(data.validation) == 100
    assert not _keys(data.train) & _keys(data.validation)
    assert not _keys(data.train) & _keys(data.test)
    assert not _keys(data.validation) & _keys(data.test)
    assert data.train.labels.bincount(minlength=10).tolist() == [train_size // 10] * 10


def test_the_test_images_are_the_same_for_every_seed_and_size() -> None:
    first = load_dataset("digits")
    other = load_dataset("digits", train_size=100, validation_size=200, seed=7)
    assert torch.equal(first.test.images, other.test.images)
    assert not torch.equal(first.validation.labels[:200], other.validation.labels)


def test_a_larger_training_set_contains_the_smaller_and_validation_stays() -> None:
    small, large = (load_dataset("digits", train_size=size) for size in (100, 250))
    assert _keys(small.train) < _keys(large.train)
    assert torch.equal(small.validation.images, large.validation.images)


def test_half_of_the_test_images_can_validate() -> None:
    data = load_dataset("digits", validation_from="test")
    assert (len(data.validation), len(data.test)) == (498, 499)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.333, 1.0])
def test_label_noise_spoils_its_share_of_the_training_labels_and_nothing_else(share: float) -> None:
    clean, noisy = load_dataset("digits"), load_dataset("digits", label_noise=share)
    assert int((noisy.train.labels != clean.train.labels).sum()) == round(share * 300)
    assert torch.equal(noisy.train.images, clean.train.images)
    for part in ("validation", "test"):
        assert torch.equal(getattr(noisy, part).labels, getattr(clean, part).labels)


def test_a_wrong_label_is_each_other_class_equally_often() -> None:
    split = Split(torch.zeros(9000, 1, 1, 1), torch.arange(9000) % 4)
    spoiled = with_wrong_labels(split, classes=4, share=0.5, seed=1).labels
    wrong = spoiled != split.labels
    shift = ((spoiled - split.labels) % 4)[wrong].bincount(minlength=4)
    assert shift[0] == 0
    assert (shift[1:] - 1500).abs().max() < 150
    assert (split.labels[wrong].bincount() - 1125).abs().max() < 120


def test_wrong_labels_are_a_function_of_the_seed_and_grow_with_the_share() -> None:
    split = Split(torch.zeros(400, 1, 1, 1), torch.arange(400) % 10)
    state = torch.get_rng_state()

    def spoil(share: float, seed: int) -> torch.Tensor:
        return with_wrong_labels(split, 10, share, seed).labels

    few, many = spoil(0.2, 0), spoil(0.5, 0)
    assert torch.equal(few, spoil(0.2, 0))
    assert not torch.equal(few, spoil(0.2, 1))
    changed = few != split.labels
    assert torch.equal(few[changed], many[changed])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_noise": 1.5}, r"label_noise: got 1.5; expected a share in 0\.\.1"),
        ({"label_noise": -0.1}, "label_noise: got -0.1"),
        ({"train_size": 301}, "train_size: got 301; expected at most the 300 images"),
        ({"validation_size": 801}, "validation_size: got 801; expected at most 800"),
        ({"train_size": -1}, "train_size: got -1"),
        ({"validation_from": "tests"}, 'validation_from: .*"train" or "test"'),
        ({"colour": 1}, "colour: got an unknown option"),
    ],
)
def test_impossible_splits_are_refused(options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_dataset("digits", **options)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)),
        (torch.zeros(3, 1, 4, 4, dtype=torch.int32), torch.zeros(3, dtype=torch.int64)),
        (torch.zeros(3, 1, 4, 4), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(3, 1, 4, 4), torch.zeros(3)),
    ],
)
def test_a_split_refuses_what_is_no_labelled_images(images: torch.Tensor, labels: torch.Tensor) -> None:
    with pytest.raises(DataError):
        Split(images, labels)


def test_labels_of_a_single_class_cannot_be_wrong() -> None:
    split = Split(torch.zeros(3, 1, 1, 1), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(DataError, match="two classes or more"):
        with_wrong_labels(split, classes=1, share=0.5, seed=0)


def test_a_dataset_is_its_three_parts() -> None:
    split = Split(torch.zeros(1, 1, 2, 2), torch.zeros(1, dtype=torch.int64))
    assert Dataset("mine", ("only",), split, split, split).test is split
