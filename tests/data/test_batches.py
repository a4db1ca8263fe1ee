from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qat_vsam.data import Batches, Split, random_crop
from qat_vsam.errors import ConfigError, DataError


def _split(n: int = 23, channels: int = 3, side: int = 8) -> Split:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, channels, side, side), generator=generator, dtype=torch.uint8)
    return Split(images, torch.arange(n))


def _batches(split: Split | None = None, **options: object) -> Batches:
    defaults: dict = {"mean": (0.5,), "std": (0.25,), "batch_size": 5}
    return Batches(_split() if split is None else split, **(defaults | options))


@given(epoch=st.integers(0, 50), start=st.integers(0, 5), seed=st.integers(0, 2**31 - 1))
def test_an_epoch_entered_late_continues_the_undisturbed_one(epoch: int, start: int, seed: int) -> None:
    options = {"augment": "crop_flip", "shuffle": True, "seed": seed}
    whole = list(_batches(**options).epoch(epoch))
    resumed = list(_batches(**options).epoch(epoch, start=start))
    assert len(resumed) == len(whole) - start
    for (x, y), (x_resumed, y_resumed) in zip(whole[start:], resumed, strict=True):
        assert torch.equal(y, y_resumed)
        assert torch.equal(x, x_resumed)


def test_batches_touch_no_global_generator() -> None:
    state = torch.get_rng_state()
    list(_batches(augment="crop_flip", shuffle=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_seed_epoch_and_step_each_change_the_crops() -> None:
    split = Split(_split(1).images.expand(10, -1, -1, -1).contiguous(), torch.zeros(10, dtype=torch.int64))

    def crops(seed: int, epoch: int, step: int) -> torch.Tensor:
        batches = _batches(split, augment="crop_flip", seed=seed)
        return next(batches.epoch(epoch, start=step))[0]

    reference = crops(0, 0, 0)
    assert torch.equal(crops(0, 0, 0), reference)
    for other in (crops(1, 0, 0), crops(0, 1, 0), crops(0, 0, 1)):
        assert not torch.equal(other, reference)


@pytest.mark.parametrize(("drop_last", "sizes"), [(False, [5, 5, 5, 5, 3]), (True, [5, 5, 5, 5])])
def test_each_image_comes_once_an_epoch_in_an_order_of_its_own(drop_last: bool, sizes: list[int]) -> None:
    batches = _batches(shuffle=True, drop_last=drop_last, seed=1)
    orders = []
    for epoch in range(3):
        labels = [y for _, y in batches.epoch(epoch)]
        assert [len(y) for y in labels] == sizes
        assert len(batches) == len(sizes)
        seen = torch.cat(labels)
        assert torch.equal(seen, batches.sample_ids(epoch)[: len(seen)])
        assert len(seen.unique()) == len(seen)
        orders.append(tuple(batches.sample_ids(epoch).tolist()))
    assert len(set(orders)) == 3


def test_without_shuffling_the_order_is_that_of_the_split() -> None:
    assert torch.equal(torch.cat([y for _, y in _batches()]), torch.arange(23))


@pytest.mark.parametrize("channels_last", [False, True])
def test_pixels_are_scaled_and_normalised_per_channel(channels_last: bool) -> None:
    split = _split()
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7])
    batches = _batches(split, mean=mean.tolist(), std=std.tolist(), channels_last=channels_last)
    x, _ = next(iter(batches))
    expected = (split.images[:5].double() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    torch.testing.assert_close(x, expected.float(), rtol=0, atol=1e-6)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert x.is_contiguous(memory_format=layout)


def test_floating_point_images_are_normalised_without_scaling_and_stay_as_they_are() -> None:
    images = torch.rand(4, 1, 2, 2)
    before = images.clone()
    x, _ = next(iter(_batches(Split(images, torch.arange(4)))))
    torch.testing.assert_close(x, (before - 0.5) / 0.25)
    assert torch.equal(images, before)


def _crop_one_by_one(images: torch.Tensor, padding: int, mirror: bool, generator: torch.Generator) -> torch.Tensor:
    """The same draws, one image at a time, with slices."""
    n, c, h, w = images.shape
    offsets = torch.randint(0, 2 * padding + 1, (2, n, 1), generator=generator)
    flips = torch.rand(n, 1, generator=generator) < 0.5 if mirror else torch.zeros(n, 1, dtype=torch.bool)
    out = []
    for i in range(n):
        padded = torch.zeros(c, h + 2 * padding, w + 2 * padding, dtype=images.dtype)
        padded[:, padding : padding + h, padding : padding + w] = images[i]
        y, x = int(offsets[0, i]), int(offsets[1, i])
        crop = padded[:, y : y + h, x : x + w]
        out.append(crop.flip(2) if flips[i] else crop)
    return torch.stack(out)


@given(
    seed=st.integers(0, 1000),
    padding=st.integers(0, 4),
    mirror=st.booleans(),
    shape=st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(1, 7), st.integers(1, 7)),
)
def test_the_gathered_crops_are_those_of_slicing(
    seed: int, padding: int, mirror: bool, shape: tuple[int, int, int, int]
) -> None:
    images = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    fast = random_crop(images, padding, mirror=mirror, generator=torch.Generator().manual_seed(seed))
    slow = _crop_one_by_one(images, padding, mirror, torch.Generator().manual_seed(seed))
    assert torch.equal(fast, slow)


@pytest.mark.parametrize(
    ("augment", "padding", "mirror"), [("crop_flip", 4, True), ("crop2_flip", 2, True), ("shift", 1, False)]
)
def test_an_augmentation_moves_images_by_as_many_pixels_as_it_says(augment: str, padding: int, mirror: bool) -> None:
    images = torch.zeros(2000, 1, 16, 16)
    images[:, 0, 8, 6] = 1
    x, _ = next(
        iter(_batches(Split(images, torch.arange(2000)), batch_size=2000, augment=augment, mean=(0,), std=(1,)))
    )
    rows, columns = x.sum((0, 1, 3)).nonzero().flatten(), x.sum((0, 1, 2)).nonzero().flatten()
    assert rows.tolist() == list(range(8 - padding, 8 + padding + 1))
    mirrored = range(9 - padding, 9 + padding + 1) if mirror else ()
    assert columns.tolist() == sorted({*range(6 - padding, 6 + padding + 1), *mirrored})


def test_every_crop_position_and_both_mirrors_occur_about_equally_often() -> None:
    n = 8100
    images = torch.zeros(n, 1, 9, 9)
    images[:, 0, 4, 3] = 1  # off the centre, so that a mirrored image is told apart
    out = random_crop(images, 4, mirror=True, generator=torch.Generator().manual_seed(0))
    rows, columns = out.sum((0, 1, 3)), out.sum((0, 1, 2))
    # column 3 shifts to 0..7 and once out of sight; mirrored, to 1..8 and once out of sight
    assert (rows - 8 / 9 * n / 9).abs().max() < 0.15 * n / 9
    assert (columns[1:8] - n / 9).abs().max() < 0.15 * n / 9
    assert (columns[[0, 8]] - n / 18).abs().max() < 0.15 * n / 9


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 24, "drop_last": True}, DataError, "23 images; expected at least one batch of 24"),
        ({"batch_size": 0}, ConfigError, "batch_size: got 0"),
        ({"augment": "crop_flop"}, ConfigError, "did you mean crop_flip"),
        ({"mean": (0.1, 0.2)}, ConfigError, "mean: .* 1 or 3 numbers"),
        ({"std": (0.0,)}, ConfigError, "std: .* positive"),
        ({"seed": -1}, ConfigError, "seed: got -1"),
        ({"split": _split(0)}, DataError, "0 images; expected at least one image"),
    ],
)
def test_impossible_batches_are_refused(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        _batches(**options)
