"""A training whose numbers are lost says so: weights and buffers are looked at, not the loss alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qat_vsam.errors import NonFiniteError
from qat_vsam.train import CheckpointFolder, RunFolder, fit


class Batches:
    """Three batches of four rows."""

    def __len__(self) -> int:
        return 3

    def epoch(self, epoch, start=0):
        for step in range(start, 3):
            yield torch.randn(4, 3, generator=torch.Generator().manual_seed(step)), torch.tensor([0, 1, 0, 1])


class Mask(nn.Module):
    """Adds a buffer that holds an infinity on purpose."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.tensor([0.0, torch.inf]))

    def forward(self, x):
        return x.where(self.mask.isfinite(), x)


def trained(model, folder, **options):
    torch.manual_seed(0)
    with RunFolder(folder) as run:
        return fit(model, torch.optim.SGD(model.parameters(), lr=0.1), Batches(), epochs=2, run=run, **options)


def test_running_variances_that_overflow_end_the_run_although_its_loss_is_finite(tmp_path):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[0].weight.data.fill_(3e19)  # the square of what it puts out is beyond float32
    with pytest.raises(NonFiniteError, match=r"1\.running_var at step 6"):
        trained(model, tmp_path)
    assert CheckpointFolder(tmp_path / "checkpoints").newest() is None


def test_a_mask_may_hold_infinities_from_the_start(tmp_path):
    assert trained(nn.Sequential(nn.Linear(3, 2), Mask()), tmp_path).steps == 6
    assert CheckpointFolder(tmp_path / "checkpoints").newest() is not None
