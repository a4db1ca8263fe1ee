"""Batch norm that is frozen after k steps: statistics stand still, scale and shift train on, and resuming knows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qat_vsam.errors import ConfigError
from qat_vsam.optim import SAM
from qat_vsam.quant import QuantSpec, calibrate, freeze_batch_norm, param_groups, prepare
from qat_vsam.train import RunFolder, fit

STEPS_AN_EPOCH = 4


class Batches:
    """Four batches an epoch, the same in each."""

    def __len__(self) -> int:
        return STEPS_AN_EPOCH

    def epoch(self, epoch: int, start: int = 0):
        generator = torch.Generator().manual_seed(epoch)
        for step in range(STEPS_AN_EPOCH):
            x, y = torch.randn(8, 3, generator=generator), torch.randint(2, (8,), generator=generator)
            if step >= start:
                yield x, y


def prepared_net(**policy: object) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))
    prepare(model, QuantSpec.preset("w4a4", **policy))
    calibrate(model, [torch.randn(8, 3, generator=torch.Generator().manual_seed(1))])
    return model


def train(model: nn.Module, epochs: int, run: RunFolder | None = None, optimizer: str = "sgd") -> None:
    groups = param_groups(model)
    chosen: torch.optim.Optimizer = torch.optim.SGD(groups, lr=0.1)
    if optimizer == "sam":
        chosen = SAM(groups, torch.optim.SGD, model=model, lr=0.1, rho=0.1)
    fit(model, chosen, Batches(), epochs=epochs, run=run)


@pytest.mark.parametrize("optimizer", ["sgd", "sam"])
@pytest.mark.parametrize("after", [0, 3, 6])
def test_statistics_move_until_the_step_and_never_again_while_scale_and_shift_train_on(after, optimizer) -> None:
    model = prepared_net(batch_norm="freeze", freeze_after=after)
    start = model[1].state_dict()["running_mean"].clone()
    train(model, epochs=3, optimizer=optimizer)
    assert int(model[1].num_batches_tracked) == after
    assert torch.equal(model[1].running_mean, start) == (after == 0)
    assert not model[1].training
    assert not torch.equal(model[1].weight, torch.ones(6))
    assert not torch.equal(model[1].bias, torch.zeros(6))


def test_a_frozen_norm_computes_what_the_exported_model_will() -> None:
    model = prepared_net(batch_norm="freeze")
    freeze_batch_norm(model.train(), 0)
    x = torch.randn(8, 3)
    assert torch.equal(model(x), model.eval()(x))


def test_a_kept_norm_is_left_alone() -> None:
    model = prepared_net()
    train(model, epochs=2)
    assert int(model[1].num_batches_tracked) == 2 * STEPS_AN_EPOCH
    assert model[1].training


@pytest.mark.parametrize("stopped_after", [1, 2])
def test_a_resumed_training_freezes_at_the_same_step(stopped_after, tmp_path) -> None:
    policy = {"batch_norm": "freeze", "freeze_after": 6}
    whole = prepared_net(**policy)
    train(whole, epochs=3)
    with RunFolder(tmp_path / "run", "x: 1\n") as run:
        train(prepared_net(**policy), epochs=stopped_after, run=run)
    resumed = prepared_net(**policy)
    with RunFolder(tmp_path / "run", "x: 1\n") as run:
        train(resumed, epochs=3, run=run)
    for one, other in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_the_summary_names_it_and_norms_without_statistics_are_left() -> None:
    model = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6, track_running_stats=False), nn.Linear(6, 2))
    summary = prepare(model, QuantSpec.preset("w4a4", batch_norm="freeze", freeze_after=5))
    assert summary.skipped[0].skipped == "normalisation, frozen after 5 steps"
    freeze_batch_norm(model.train(), 5)
    assert model[1].training


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"batch_norm": "fold"}, "batch_norm: got fold; expected one of keep, freeze"),
        ({"batch_norm": "freeze", "freeze_after": -1}, "freeze_after: got -1"),
        ({"freeze_after": 3}, "freeze_after: got 3 with batch_norm keep; .*set batch_norm to freeze"),
    ],
)
def test_an_impossible_policy_is_refused(policy, message) -> None:
    with pytest.raises(ConfigError, match=message):
        QuantSpec.preset("w4a4", **policy)
