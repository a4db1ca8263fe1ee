"""Images that are decoded when they are first asked for, and then kept: another draw does not decode them again."""

from __future__ import annotations

import torch
from torch import Tensor

from qat_vsam.data.dataset import Rows
from qat_vsam.errors import DataError, explain

MOST_BYTES_KEPT = 2**30


def keep_decoded(rows: Rows) -> Rows:
    """The same rows; an image that was taken once is not decoded again.

    A source whose images would fill more than `MOST_BYTES_KEPT` decodes them anew each time instead. Rows that lie in
    memory anyway are returned as they are.

    Example:
        >>> decoded = []
        >>> def decode(index):
        ...     decoded.extend(index.tolist())
        ...     return torch.zeros(len(index), 1, 2, 2, dtype=torch.uint8)
        >>> rows = keep_decoded(Rows(torch.arange(4), decode))
        >>> _ = rows.take(torch.tensor([0, 1])), rows.take(torch.tensor([1, 2]))
        >>> decoded
        [0, 1, 2]
    """
    return rows if rows.in_memory else Rows(rows.labels, _Kept(rows))


class _Kept:
    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._images: Tensor | None = None
        self._known = torch.zeros(len(rows.labels), dtype=torch.bool)
        self._fits = True

    def __call__(self, index: Tensor) -> Tensor:
        new = index[~self._known[index]]
        if not self._fits or (self._images is None and not len(new)):
            return self._rows.images(index)
        if len(new):
            decoded = self._rows.images(new)
            if self._images is None:
                self._fits = decoded[0].nbytes * len(self._known) <= MOST_BYTES_KEPT
                if not self._fits:
                    return decoded  # nothing was known, so these are all
                # a page of it takes memory when an image is written there
                self._images = torch.empty(len(self._known), *decoded.shape[1:], dtype=decoded.dtype)
            _check_shape(decoded, self._images)
            self._images[new] = decoded
            self._known[new] = True
        assert self._images is not None
        return self._images[index]


def _check_shape(decoded: Tensor, kept: Tensor) -> None:
    if decoded.shape[1:] != kept.shape[1:]:
        sizes = f"{list(decoded.shape[1:])} and {list(kept.shape[1:])}"
        raise DataError(explain("data", f"images of {sizes}", "images of one size", "resize the images to one size"))
