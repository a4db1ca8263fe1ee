"""Decoding of image files to uint8 tensors, and the errors for files that are no images."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from qat_vsam.errors import DataError, explain

# Pillow knows dozens of formats; the rare ones only widen what a hostile file can reach
_FORMATS = ("PNG", "JPEG", "BMP", "PPM", "TIFF", "WEBP")

Progress = Callable[[int, int], None]


def decode_images(
    encoded: Sequence[bytes | str],
    names: Sequence[str],
    *,
    size: int | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Decode images of one size into one tensor.

    Args:
        encoded: N image files, as bytes or as paths.
        names: N names for error messages.
        size: resize each image to size x size; None demands that all images have the size of the first.
        progress: called now and then with the number of images done and N.

    Returns:
        uint8 (N, 3, H, W).

    Raises:
        DataError: an image cannot be decoded, or has another size than the first.
    """
    out: np.ndarray | None = None
    for i, (source, name) in enumerate(zip(encoded, names, strict=True)):
        pixels = _decode(source, name, size, expected=None if out is None else out.shape[1:3])
        if out is None:
            out = np.empty((len(encoded), *pixels.shape), dtype=np.uint8)
        out[i] = pixels
        if progress is not None and ((i + 1) % 1000 == 0 or i + 1 == len(encoded)):
            progress(i + 1, len(encoded))
    if out is None:
        return torch.empty(0, 3, size or 0, size or 0, dtype=torch.uint8)
    return torch.from_numpy(out).permute(0, 3, 1, 2).contiguous()


def shrink(images: Tensor, side: int) -> Tensor:
    """Images made smaller by the mean over blocks of pixels, in whole numbers, halves rounded up.

    With k = H / side, out[i, j] = floor((sum of the k x k block at (k i, k j) + floor(k^2 / 2)) / k^2).

    Args:
        images: uint8 (N, C, H, H).
        side: pixels of the new side; divides H.

    Returns:
        uint8 (N, C, side, side).

    Raises:
        DataError: images that are not square, or a side that does not divide theirs.

    Example:
        >>> shrink(torch.tensor([[[[0, 1], [1, 0]]]], dtype=torch.uint8), 1).item()
        1
    """
    n, channels, height, width = images.shape
    if height != width or side < 1 or height % side:
        divisors = ", ".join(str(number) for number in range(1, height + 1) if height % number == 0)
        raise DataError(
            explain("size", side, f"a divisor of {height}, the side of square images", f"choose one of {divisors}")
        )
    if side == height:
        return images
    k = height // side
    total = images.reshape(n, channels, side, k, side, k).sum((3, 5), dtype=torch.int32)
    return ((total + k * k // 2) // (k * k)).to(torch.uint8)


def _decode(source: bytes | str, name: str, size: int | None, expected: tuple[int, ...] | None) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS) as image:
            # the header tells the size, so an image that would unpack to gigabytes is refused before it does
            if size is None and expected is not None and (image.height, image.width) != expected:
                raise DataError(
                    explain(
                        name,
                        f"an image of {image.width} x {image.height}",
                        f"{expected[1]} x {expected[0]}, the size of the first image",
                        "resize the images to one size",
                    )
                )
            colour = image if image.mode == "RGB" else image.convert("RGB")
            if size is not None:
                colour = colour.resize((size, size), Image.Resampling.BILINEAR)
            return np.asarray(colour)
    except DataError:
        raise
    except Exception as error:  # broken bytes make the decoders raise OSError, SyntaxError, struct.error ...
        raise DataError(
            explain(
                name,
                f"an undecodable image ({type(error).__name__}: {error})",
                f"one of {', '.join(_FORMATS)}",
                "fetch the file again",
            )
        ) from error
