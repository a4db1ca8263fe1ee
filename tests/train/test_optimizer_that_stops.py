"""Gradients that are not finite, under the policies of the optimizer that leave steps out."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from qat_vsam.optim import SAM
from qat_vsam.train import CheckpointFolder, RunFolder, fit

BAD_STEP = 5  # the second batch of the second epoch


class Batches:
    """Three batches of four rows; one of them is NaN."""

    def __init__(self) -> None:
        self.x = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
        self.y = torch.arange(12) % 2

    def __len__(self) -> int:
        return 3

    def __iter__(self):
        return self.epoch(0)

    def epoch(self, epoch, start=0):
        for step in range(start, 3):
            rows = slice(4 * step, 4 * step + 4)
            x = self.x[rows]
            yield (x * math.nan if 3 * epoch + step + 1 == BAD_STEP else x), self.y[rows]


def built(nonfinite, **options):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 2))
    return model, SAM(model.parameters(), torch.optim.SGD, model=model, lr=0.1, nonfinite=nonfinite, **options)


def read(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("log_every", [1, 100])
def test_a_stop_ends_the_run_with_a_checkpoint_and_the_result_says_so(tmp_path, log_every):
    model, optimizer = built("stop")
    with RunFolder(tmp_path) as run:
        result = fit(model, optimizer, Batches(), epochs=4, run=run, log_every=log_every, validation=Batches())
    assert result.stopped
    assert (result.steps, result.epochs, optimizer.skipped) == (BAD_STEP, 1, 1)
    assert math.isfinite(result.train_loss)
    newest = CheckpointFolder(tmp_path / "checkpoints").newest()
    assert newest["training"]["ledger"]["steps"] == BAD_STEP
    for name, value in model.state_dict().items():
        assert torch.equal(newest["training"]["model"][name], value)
        assert torch.isfinite(value).all()
    if log_every == 1:
        assert [line["loss"] is None for line in read(tmp_path) if line["kind"] == "step"] == [False] * 4 + [True]


def test_a_run_that_was_stopped_stays_stopped(tmp_path):
    model, optimizer = built("stop")
    with RunFolder(tmp_path) as run:
        fit(model, optimizer, Batches(), epochs=4, run=run)
    again, fresh = built("stop")
    with RunFolder(tmp_path) as run:
        result = fit(again, fresh, Batches(), epochs=4, run=run)
    assert (result.stopped, result.steps, result.resumed_from) == (True, BAD_STEP, BAD_STEP)
    assert torch.equal(again[0].weight, model[0].weight)


@pytest.mark.parametrize("log_every", [1, 100])
def test_a_step_that_is_skipped_counts_in_no_mean_and_the_run_goes_on(tmp_path, log_every):
    model, optimizer = built("skip")
    with RunFolder(tmp_path) as run:
        result = fit(model, optimizer, Batches(), epochs=3, run=run, log_every=log_every, checkpoint_every_steps=1)
    assert not result.stopped
    assert (result.steps, result.epochs, optimizer.skipped) == (9, 3, 1)
    assert all(math.isfinite(line["train_loss"]) for line in read(tmp_path) if line["kind"] == "epoch")


def test_a_run_of_finite_gradients_is_not_stopped():
    model, _ = built("stop")
    result = fit(model, torch.optim.SGD(model.parameters(), lr=0.1), Batches(), epochs=1)
    assert not result.stopped
