"""Promises of the draws: a seed chooses who trains and validates, never who is tested on."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import torch

from qat_vsam.data import Dataset, Split, load_dataset, load_source
from qat_vsam.data import decoded as decoded_module
from qat_vsam.data.dataset import Rows
from qat_vsam.data.decoded import keep_decoded
from qat_vsam.errors import DataError

SEEDS = (0, 1, 2, 1000, 1001)


def keys(split: Split) -> set[bytes]:
    return {image.numpy().tobytes() for image in split.images}


def digest(split: Split) -> str:
    return hashlib.sha256(split.images.numpy().tobytes() + split.labels.numpy().tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("validation_from", ["train", "test"])
def test_no_image_is_tested_on_under_one_seed_and_seen_under_another(validation_from: str) -> None:
    source = load_source("digits")
    draws = [source.draw(validation_from=validation_from, seed=seed) for seed in SEEDS]
    tested = keys(draws[0].test)
    assert all(keys(data.test) == tested for data in draws)
    assert not any((keys(data.train) | keys(data.validation)) & tested for data in draws)


def test_a_seed_draws_other_images_and_other_wrong_labels() -> None:
    source = load_source("digits")
    one, other = (source.draw(train_size=100, label_noise=0.3, seed=seed) for seed in (0, 1))
    assert keys(one.train) != keys(other.train)
    assert keys(one.validation) != keys(other.validation)
    whole = [load_dataset("digits", train_size=300, label_noise=0.3, seed=seed) for seed in (0, 0)]
    assert torch.equal(whole[0].train.labels, whole[1].train.labels)


@pytest.mark.parametrize(
    ("options", "digests"),
    [
        ({}, ["2a53b9b6ca227b0b", "dcc5f343a37fdcc7", "581974a400c1e849"]),
        (
            {"train_size": 100, "validation_size": 200, "label_noise": 0.2},
            ["83ea22f0254ad99d", "96913d22e49c2d17", "581974a400c1e849"],
        ),
        ({"validation_from": "test"}, ["909458cb980d486e", "fcd63971e5f6cabe", "a7176a05d1d33866"]),
    ],
)
def test_draw_0_of_the_digits_is_that_of_earlier_studies(options: dict, digests: list[str]) -> None:
    data = load_dataset("digits", **options)
    assert [digest(part) for part in (data.train, data.validation, data.test)] == digests


@pytest.mark.skipif("QAT_VSAM_DATA" not in os.environ, reason="needs CIFAR-10 in QAT_VSAM_DATA")
@pytest.mark.parametrize(
    ("options", "digests"),
    [
        ({"validation_size": 200}, ["4ae0c468fedda0c5", "0295bfe3a808ee40", "72f13c34fd3e4cc2"]),
        ({"validation_from": "test"}, ["0a042cc8a9160866", "a72e613aca2d5ec8", "817354dfbbfcfa93"]),
    ],
)
def test_draw_0_of_cifar10_is_that_of_earlier_studies(options: dict, digests: list[str]) -> None:
    data = load_dataset("cifar10", os.environ["QAT_VSAM_DATA"], size=8, train_size=300, **options)
    assert [digest(part) for part in (data.train, data.validation, data.test)] == digests


def test_a_dataset_says_whether_a_seed_changes_what_it_trains_on() -> None:
    source = load_source("digits")
    assert source.draw().drawn
    assert not source.draw(train_size=800, validation_from="test").drawn
    assert source.draw(train_size=800, validation_from="test", label_noise=0.1).drawn


def test_a_ready_dataset_is_not_drawn_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ready_digits.py").write_text(
        "from qat_vsam.data import load_dataset\ndef ready(root=None):\n    return load_dataset('digits')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    one, other = (load_dataset("ready_digits:ready", seed=seed) for seed in (0, 1))
    assert keys(one.train) == keys(other.train)
    assert not other.drawn


def counted_rows(images: torch.Tensor) -> tuple[Rows, list[int]]:
    asked: list[int] = []

    def decode(index: torch.Tensor) -> torch.Tensor:
        asked.extend(index.tolist())
        return images[index]

    return Rows(torch.arange(len(images)) % 3, decode), asked


def test_another_draw_decodes_only_what_no_earlier_one_had() -> None:
    images = torch.arange(10 * 12, dtype=torch.uint8).view(10, 3, 2, 2)
    rows, asked = counted_rows(images)
    kept = keep_decoded(rows)
    for index in ([], [2, 5], [5, 2, 7], [0, 7], [2]):
        chosen = torch.tensor(index, dtype=torch.int64)
        assert torch.equal(kept.take(chosen).images, images[chosen.sort().values])
    assert sorted(asked) == [0, 2, 5, 7]


def test_a_source_too_large_for_memory_is_decoded_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.arange(40, dtype=torch.uint8).view(10, 1, 2, 2)
    monkeypatch.setattr(decoded_module, "MOST_BYTES_KEPT", 39)
    rows, asked = counted_rows(images)
    kept = keep_decoded(rows)
    for _ in range(2):
        assert torch.equal(kept.images(torch.tensor([1, 4])), images[[1, 4]])
    assert asked == [1, 4, 1, 4]


def test_images_of_two_sizes_in_two_draws_are_refused() -> None:
    rows = Rows(torch.zeros(4, dtype=torch.int64), lambda index: torch.zeros(len(index), 1, 2 + int(index[0]), 2))
    kept = keep_decoded(rows)
    kept.take(torch.tensor([0]))
    with pytest.raises(DataError, match="images of one size"):
        kept.take(torch.tensor([3]))


def test_a_dataset_of_three_parts_counts_as_drawn_unless_it_says_otherwise() -> None:
    split = Split(torch.zeros(1, 1, 2, 2), torch.zeros(1, dtype=torch.int64))
    assert Dataset("mine", ("only",), split, split, split).drawn
