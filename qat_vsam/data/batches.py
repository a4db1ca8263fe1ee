"""Batches of a split: order, augmentation and normalisation as a pure function of (seed, epoch, step).

No generator lives longer than one batch, so a resumed run sees the samples that the undisturbed one would
have seen, and nothing about the data has to be saved.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from qat_vsam.data.dataset import Split
from qat_vsam.errors import ConfigError, DataError, did_you_mean, explain

# what is drawn from a generator, so that the order of an epoch and the crops of a step never share numbers
_ORDER, _AUGMENT = 1, 2

# name: (pixels of zero padding before a random crop, whether half of the images are mirrored)
_AUGMENTATIONS = {"crop_flip": (4, True), "crop2_flip": (2, True), "shift": (1, False)}


class Batches:
    """The batches of a split, epoch by epoch.

    Args:
        split: images (N, C, H, W) and labels (N,), on any device. uint8 images are scaled to [0, 1] first.
        batch_size: images a batch; the last one may be smaller unless `drop_last`.
        mean: subtracted from each channel; one number counts for all channels.
        std: divides each channel afterwards.
        augment: "crop_flip" (zero padding of 4 pixels, random crop, mirrored in half of the cases),
            "crop2_flip" (the same with 2 pixels, for images of 16 x 16), "shift" (by at most one pixel each
            way, zeros at the border) or None.
        shuffle: a new order each epoch.
        seed: of order and augmentation.
        drop_last: leave out what does not fill a batch.
        device: where batches go; they travel as uint8, or not at all where the split is there already.
        channels_last: memory format of the images.

    Raises:
        DataError: the split is empty, or smaller than one batch while `drop_last` is set.
        ConfigError: an option that cannot be.

    Example:
        >>> split = Split(torch.zeros(10, 1, 8, 8, dtype=torch.uint8), torch.zeros(10, dtype=torch.int64))
        >>> batches = Batches(split, 4, mean=(0.5,), std=(0.5,), shuffle=True, seed=3)
        >>> [len(y) for x, y in batches.epoch(0)]
        [4, 4, 2]
        >>> len(list(batches.epoch(0, start=2)))
        1
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        augment: str | None = None,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        device: str | torch.device = "cpu",
        channels_last: bool = False,
    ) -> None:
        self.split = split
        self.batch_size = batch_size
        self.augment = augment
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self.device = torch.device(device)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self._check(mean, std)
        self._mean = torch.tensor(mean, dtype=torch.float32, device=self.device).view(-1, 1, 1)
        self._std = torch.tensor(std, dtype=torch.float32, device=self.device).view(-1, 1, 1)

    def __len__(self) -> int:
        """Steps an epoch."""
        count = len(self.split) / self.batch_size
        return math.floor(count) if self.drop_last else math.ceil(count)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of epoch 0, which is what an evaluation wants."""
        return self.epoch(0)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch from step `start` on.

        Args:
            epoch: number of the epoch, from 0.
            start: first step, from 0.

        Yields:
            Images, float32 (B, C, H, W), and labels, int64 (B,).
        """
        ids = self.sample_ids(epoch).to(self.split.images.device)
        for step in range(start, len(self)):
            rows = ids[step * self.batch_size : (step + 1) * self.batch_size]
            images = self.split.images[rows].to(self.device)
            labels = self.split.labels[rows].to(self.device)
            if self.augment is not None:
                padding, mirror = _AUGMENTATIONS[self.augment]
                generator = self._generator(_AUGMENT, epoch, step)
                images = random_crop(images, padding, mirror=mirror, generator=generator)
            yield self._normalise(images), labels

    def sample_ids(self, epoch: int) -> Tensor:
        """Row numbers (N,) of an epoch in batch order, those of a dropped last batch included."""
        if not self.shuffle:
            return torch.arange(len(self.split))
        return torch.randperm(len(self.split), generator=self._generator(_ORDER, epoch, 0))

    def _generator(self, purpose: int, epoch: int, step: int) -> torch.Generator:
        # neighbouring seeds give similar first numbers in many generators; the sequence mixes them
        mixed = np.random.SeedSequence([purpose, self.seed, epoch, step]).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(mixed[0]))

    def _normalise(self, images: Tensor) -> Tensor:
        scale = 255.0 if images.dtype == torch.uint8 else 1.0
        out = images.to(torch.float32, memory_format=self.memory_format, copy=True)
        return out.sub_(self._mean * scale).div_(self._std * scale)

    def _check(self, mean: Sequence[float], std: Sequence[float]) -> None:
        channels = self.split.images.shape[1]
        for key, values in (("mean", mean), ("std", std)):
            if len(values) not in (1, channels):
                raise ConfigError(explain(key, list(values), f"1 or {channels} numbers", "give one number per channel"))
        if min(std) <= 0:
            raise ConfigError(explain("std", list(std), "positive numbers", "use 1 for no scaling"))
        if self.batch_size < 1:
            raise ConfigError(explain("batch_size", self.batch_size, "at least 1", "choose a larger batch"))
        if self.seed < 0:
            raise ConfigError(explain("seed", self.seed, "0 or more", "choose another seed"))
        if self.augment is not None and self.augment not in _AUGMENTATIONS:
            advice = did_you_mean(str(self.augment), _AUGMENTATIONS)
            raise ConfigError(explain("augment", repr(self.augment), "a known augmentation or none", advice))
        if len(self) == 0:
            rule = f"at least one batch of {self.batch_size}" if len(self.split) else "at least one image"
            raise DataError(explain("split", f"{len(self.split)} images", rule, "add images or choose a smaller batch"))


def random_crop(images: Tensor, padding: int, *, mirror: bool, generator: torch.Generator) -> Tensor:
    """Each image at a random place of its zero-padded self, mirrored with probability 1/2 on demand.

    All images of the batch are cut by one gather: out[n, c, i, j] = padded[n, c, i + y_n, j' + x_n] with
    offsets x, y uniform in 0..2 padding and j' = j, or W - 1 - j in a mirrored image.

    Args:
        images: (N, C, H, W), any type.
        padding: zeros on each side, in pixels.
        mirror: draw who is mirrored.
        generator: on the CPU, so that every device sees the same crops.

    Returns:
        (N, C, H, W), same type.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> crops = random_crop(torch.ones(4, 1, 8, 8), 1, mirror=False, generator=generator)
        >>> crops.shape, bool((crops.sum((1, 2, 3)) >= 49).all())
        (torch.Size([4, 1, 8, 8]), True)
    """
    n, c, h, w = images.shape
    device = images.device
    offsets = torch.randint(0, 2 * padding + 1, (2, n, 1), generator=generator).to(device)
    columns = torch.arange(w, device=device).expand(n, w)
    if mirror:
        mirrored = torch.rand(n, 1, generator=generator).to(device) < 0.5
        columns = torch.where(mirrored, w - 1 - columns, columns)
    rows = torch.arange(h, device=device) + offsets[0]  # (N, H)
    columns = columns + offsets[1]  # (N, W)
    padded = F.pad(images, (padding,) * 4)
    pixel = rows[:, :, None] * padded.shape[3] + columns[:, None, :]  # (N, H, W), position in a flattened channel
    pixel = pixel.view(n, 1, h * w).expand(n, c, h * w)
    return padded.reshape(n, c, -1).gather(2, pixel).view(n, c, h, w)
