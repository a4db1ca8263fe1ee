"""Training without labels: a quantized net learns to answer as its float copy does.

y = teacher(x)        of every batch, augmented or not, in the place of its labels
loss(model(x), y)     the Kullback-Leibler divergence of two sets of logits, or their squared difference
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from qat_vsam.train.loop import EpochBatches


class TeacherBatches:
    """Batches whose labels are a teacher's answers, of shape (b, ...); those of the data are not looked at.

    Args:
        batches: the inputs, such as `qat_vsam.data.Batches`.
        teacher: in float; it is copied, frozen and put in evaluation mode.

    Example:
        >>> from qat_vsam.data import Batches, Split
        >>> split = Split(torch.zeros(10, 1, 2, 2, dtype=torch.uint8), torch.zeros(10, dtype=torch.int64))
        >>> teacher = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> batches = TeacherBatches(Batches(split, 5, mean=(0.5,), std=(0.5,)), teacher)
        >>> [y.shape for x, y in batches]
        [torch.Size([5, 3]), torch.Size([5, 3])]
    """

    def __init__(self, batches: EpochBatches, teacher: nn.Module) -> None:
        self.batches = batches
        self.teacher = copy.deepcopy(teacher).eval().requires_grad_(False)

    def __len__(self) -> int:
        """Steps an epoch."""
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of epoch 0."""
        return self.epoch(0)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch from step `start` on."""
        for x, _ in self.batches.epoch(epoch, start):
            with torch.no_grad():
                y = self.teacher(x)
            yield x, y


def kl_divergence(logits: Tensor, teacher: Tensor) -> Tensor:
    """sum_c p_c log(p_c / q_c), p = softmax(teacher), q = softmax(logits); the mean over the rows.

    Args:
        logits, teacher: of shape (b, classes).

    Example:
        >>> kl_divergence(torch.zeros(1, 2), torch.zeros(1, 2))
        tensor(0.)

    Reference: Hinton et al., arXiv 1503.02531, at temperature 1.
    """
    return F.kl_div(F.log_softmax(logits, 1), F.log_softmax(teacher, 1), reduction="batchmean", log_target=True)


# name in a recipe -> loss
DISTILLATION_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"kl": kl_divergence, "mse": F.mse_loss}
