"""What a model expects of its input and where it comes from."""

from __future__ import annotations

from dataclasses import dataclass

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ModelInfo:
    """What a model expects of its input and where it comes from.

    Attributes:
        mean: subtracted from each channel of an image in [0, 1]; one number counts for all channels.
        std: divides each channel afterwards; one number counts for all channels.
        input_shape: (C, H, W) of one input, or None where the builder does not tell.
        num_classes: number of logits, or None where the builder does not tell.
        source: one line on the origin of the architecture.
        told: whether mean and std are known; else they leave images in [0, 1].
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_shape: tuple[int, int, int] | None
    num_classes: int | None
    source: str
    told: bool = True
