"""A moving average watches the training, is judged in its place, and is what the training leaves behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qat_vsam.errors import CheckpointError, ConfigError
from qat_vsam.train import CheckpointFolder, RunFolder, fit, load_trained


class Batches:
    """Five batches of eight rows."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(40, 3, generator=generator)
        self.y = (self.x.sum(1) > 0).long()

    def __len__(self):
        return 5

    def __iter__(self):
        return self.epoch(0)

    def epoch(self, epoch, start=0):
        for step in range(start, 5):
            rows = slice(8 * step, 8 * step + 8)
            yield self.x[rows], self.y[rows]


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def train(model, **options):
    return fit(model, torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9), Batches(), **options)


@pytest.mark.parametrize("decay", [0.3, 0.999])
def test_the_model_ends_as_the_average_of_its_states_after_each_step(decay):
    states = []

    def note(progress):
        if progress.kind == "step":
            states.append({name: value.detach().clone() for name, value in alone.state_dict().items()})

    alone = build()
    train(alone, epochs=4, on_event=note)
    expected = {name: value.double() for name, value in states[0].items()}
    for updates, state in enumerate(states[1:], start=1):
        d = min(decay, (1 + updates) / (10 + updates))
        expected = {name: d * expected[name] + (1 - d) * state[name].double() for name in state}

    averaged = build()
    train(averaged, epochs=4, ema=decay)

    for name, value in averaged.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(value, states[-1][name])


def test_the_average_changes_nothing_about_the_training(tmp_path):
    ends = []
    for number, ema in enumerate((None, 0.9)):
        model = build()
        with RunFolder(tmp_path / str(number)) as run:
            train(model, epochs=3, run=run, ema=ema)
        ends.append(CheckpointFolder(tmp_path / str(number) / "checkpoints").newest()["training"])
    for name, value in ends[0]["model"].items():
        assert torch.equal(value, ends[1]["model"][name]), name
    assert "average" not in ends[0]
    assert any(not torch.equal(value, ends[1]["average"][name]) for name, value in ends[1]["model"].items())


def test_validation_judges_the_average(monkeypatch):
    judged = []

    def look(model, batches, device):
        judged.append({name: value.clone() for name, value in model.state_dict().items()})
        return type("Accuracy", (), {"value": 0.5})

    monkeypatch.setattr("qat_vsam.train.loop.accuracy", look)
    model = build()
    train(model, epochs=2, ema=0.9, validation=Batches())
    assert len(judged) == 2
    for name, value in model.state_dict().items():
        assert torch.equal(judged[-1][name], value), name


def test_a_finished_training_called_again_and_its_folder_give_the_average(tmp_path):
    first, again, loaded = build(), build(), build()
    for model in (first, again):
        with RunFolder(tmp_path) as run:
            train(model, epochs=2, run=run, ema=0.9)
    load_trained(tmp_path, loaded)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
        assert torch.equal(value, loaded.state_dict()[name]), name


def test_a_checkpoint_without_the_average_is_refused(tmp_path):
    with RunFolder(tmp_path) as run:
        train(build(), epochs=1, run=run)
    with RunFolder(tmp_path) as run, pytest.raises(CheckpointError, match="average"):
        train(build(), epochs=2, run=run, ema=0.9)


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5, float("nan")])
def test_a_decay_that_averages_nothing_is_refused(decay):
    with pytest.raises(ConfigError, match=r"ema: got .*; expected a decay between 0 and 1"):
        train(build(), epochs=1, ema=decay)
