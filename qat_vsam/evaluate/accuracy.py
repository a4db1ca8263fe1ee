"""Accuracy and loss of anything that maps images to logits: a module, or an exported file in its runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from qat_vsam.errors import DataError, explain


@dataclass(frozen=True)
class Accuracy:
    """Counts and the mean loss over all images.

    Attributes:
        correct: images whose largest logit is that of their label.
        total: images seen.
        loss: mean cross-entropy; not finite where a logit is not.
    """

    correct: int
    total: int
    loss: float

    @property
    def value(self) -> float:
        """The share of correct images, in [0, 1]."""
        return self.correct / self.total


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode, and each back into the mode that it had.

    Example:
        >>> model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(3).eval())
        >>> with evaluation_mode(model):
        ...     print(model[0].training)
        False
        >>> model[0].training, model[1].training
        (True, False)
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def accuracy(
    model: nn.Module | Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    device: str | torch.device = "cpu",
) -> Accuracy:
    """Count how often the largest logit is that of the label.

    An image with a logit that is not finite counts as wrong.

    Args:
        model: maps images (B, C, H, W) to logits (B, K). A module is evaluated in evaluation mode and
            returns to its mode afterwards.
        batches: pairs of images and labels (B,).
        device: where the images go.

    Raises:
        DataError: there are no batches.

    Example:
        >>> images, labels = torch.eye(3), torch.tensor([0, 1, 0])
        >>> result = accuracy(lambda x: x, [(images, labels)])
        >>> result.correct, result.total
        (2, 3)
    """
    if isinstance(model, nn.Module):
        with evaluation_mode(model):
            return _count(model, batches, torch.device(device))
    return _count(model, batches, torch.device(device))


# not inference mode: a buffer that a module makes there could never take part in training again
@torch.no_grad()
def _count(
    model: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]], device: torch.device
) -> Accuracy:
    total = 0
    # sums stay on the device until the end, so that no batch waits for the one before
    correct = torch.zeros((), dtype=torch.int64, device=device)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    for images, labels in batches:
        images, labels = images.to(device), labels.to(device)
        logits = model(images).to(device).float()
        hit = (logits.argmax(1) == labels) & logits.isfinite().all(1)
        correct += hit.sum()
        loss += F.cross_entropy(logits, labels, reduction="sum")
        total += len(labels)
    if total == 0:
        raise DataError(explain("batches", "no images", "at least one batch", "give images to evaluate"))
    return Accuracy(int(correct), total, float(loss) / total)
