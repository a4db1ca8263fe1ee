"""What the loop counts, logs, hands to the optimizer, and refuses."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from qat_vsam.errors import ConfigError, NonFiniteError
from qat_vsam.train import CheckpointFolder, RunFolder, fit


class Batches:
    """Ten rows in batches of four: the last one is short."""

    def __init__(self, x=None):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(10, 3, generator=generator) if x is None else x
        self.y = torch.arange(10) % 2

    def __len__(self):
        return 3

    def __iter__(self):
        return self.epoch(0)

    def epoch(self, epoch, start=0):
        for step in range(start, 3):
            rows = slice(4 * step, 4 * step + 4)
            yield self.x[rows], self.y[rows]


@pytest.fixture
def model():
    generator = torch.Generator().manual_seed(1)
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.randn(2, 3, generator=generator))
        model.bias.zero_()
    return model


class HalfAgain(torch.optim.SGD):
    """SGD that looks at the first half of each batch twice, and counts as the sharpness-aware ones do."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, lr=lr)
        self.gradient_evaluations = 0.0
        self.losses = []

    def step(self, closure=None, batch_size=None):
        with torch.enable_grad():
            closure(slice(0, batch_size // 2))
            loss = closure()
        super().step()
        self.losses.append(loss.item())
        return loss.detach()

    def statistics(self):
        return {"gradient_norm": 1.5, "psf_norm": math.nan}


def read(folder, name="metrics.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_the_loop_is_plain_training(model):
    twin = nn.Linear(3, 2)
    twin.load_state_dict(model.state_dict())
    by_hand = torch.optim.SGD(twin.parameters(), lr=0.5, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(by_hand, 2, 0.5)
    for epoch in range(2):
        for x, y in Batches().epoch(epoch):
            by_hand.zero_grad()
            functional.cross_entropy(twin(x), y).backward()
            by_hand.step()
            schedule.step()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    fit(model, optimizer, Batches(), epochs=2, lr_scheduler=torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5))

    assert torch.equal(model.weight, twin.weight)


def test_the_ledger_counts_each_pass_by_the_share_of_the_batch(model):
    result = fit(model, HalfAgain(model.parameters(), 0.1), Batches(), epochs=2)

    assert result.ledger.steps == result.steps == 6
    assert result.ledger.gradient_evaluations == 6 * 1.5
    assert result.ledger.forwards == 12
    assert result.ledger.images == 20
    assert result.ledger.train_seconds > 0
    assert result.ledger.to_dict()["images_per_second"] == pytest.approx(20 / result.ledger.train_seconds)
    assert result.ledger.peak_memory_bytes > 1_000_000


def test_validation_is_not_training_time(model, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    class SlowBatches(Batches):
        def __init__(self, seconds):
            super().__init__()
            self.seconds = seconds

        def epoch(self, epoch, start=0):
            for batch in super().epoch(epoch, start):
                now[0] += self.seconds
                yield batch

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    result = fit(model, optimizer, SlowBatches(1.0), validation=SlowBatches(100.0), epochs=2)

    assert result.ledger.train_seconds == 6.0
    assert result.ledger.evaluation_seconds == 600.0


def test_the_metrics_hold_steps_and_epochs_and_no_timings(model, tmp_path):
    optimizer = HalfAgain(model.parameters(), 0.1)
    with RunFolder(tmp_path) as run:
        fit(
            model,
            optimizer,
            Batches(),
            epochs=2,
            run=run,
            validation=Batches(),
            validate_every=2,
            log_every=2,
        )

    lines = read(tmp_path)
    assert [(line["kind"], line["step"], line["epoch"]) for line in lines] == [
        ("step", 2, 1),
        ("epoch", 3, 1),
        ("step", 4, 2),
        ("step", 6, 2),
        ("epoch", 6, 2),
    ]
    assert lines[0] == {
        "kind": "step",
        "step": 2,
        "epoch": 1,
        "loss": optimizer.losses[1],
        "lr": 0.1,
        "gradient_evaluations": 3.0,
        "gradient_norm": 1.5,
        "psf_norm": None,
    }
    rows = [4, 4, 2]
    mean = sum(loss * n for loss, n in zip(optimizer.losses[3:], rows, strict=True)) / 10
    assert lines[4]["train_loss"] == pytest.approx(mean, rel=1e-6)
    assert lines[1]["validation_accuracy"] is None
    assert 0 <= lines[4]["validation_accuracy"] <= 1
    assert not any("seconds" in key for line in lines for key in line)
    timings = read(tmp_path, "timing.jsonl")
    assert [(line["kind"], line["step"]) for line in timings] == [(line["kind"], line["step"]) for line in lines]
    assert all(line["train_seconds"] > 0 for line in timings)


def test_a_plain_optimizer_has_its_gradient_norm_logged(model, tmp_path):
    with RunFolder(tmp_path) as run:
        fit(model, torch.optim.SGD(model.parameters(), lr=0.1), Batches(), epochs=1, run=run, log_every=3)
    expected = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters()))
    assert read(tmp_path)[0]["gradient_norm"] == pytest.approx(expected)


@pytest.mark.parametrize("log_every", [1, 100])
def test_a_loss_that_is_not_finite_stops_the_run_and_reaches_no_checkpoint(model, tmp_path, log_every):
    x = Batches().x
    x[9] = math.inf
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with RunFolder(tmp_path) as run, pytest.raises(NonFiniteError, match=r"loss at step 3.*learning rate"):
        fit(model, optimizer, Batches(x), epochs=2, run=run, log_every=log_every, checkpoint_every_steps=2)
    (checkpoint,) = CheckpointFolder(tmp_path / "checkpoints").paths()
    assert "step-00000002" in checkpoint.name


def test_a_loss_that_is_not_finite_is_not_saved_with_weights_that_are(model, tmp_path):
    class Idle(torch.optim.SGD):
        def step(self, closure):
            return closure()

    x = Batches().x
    x[0] = math.nan
    with RunFolder(tmp_path) as run, pytest.raises(NonFiniteError, match="loss at step 1"):
        fit(model, Idle(model.parameters()), Batches(x), epochs=1, run=run, checkpoint_every_steps=1)
    assert CheckpointFolder(tmp_path / "checkpoints").newest() is None


def test_weights_that_are_not_finite_are_not_saved(model, tmp_path):
    optimizer = torch.optim.SGD(model.parameters(), lr=math.inf)
    with RunFolder(tmp_path) as run, pytest.raises(NonFiniteError, match="at step 1"):
        fit(model, optimizer, Batches(), epochs=1, run=run, log_every=100, checkpoint_every_steps=1)
    assert CheckpointFolder(tmp_path / "checkpoints").newest() is None


def test_bf16_runs_under_autocast_and_keeps_float32_weights(model):
    seen = []
    model.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    fit(model, torch.optim.SGD(model.parameters(), lr=0.1), Batches(), epochs=1, amp="bf16")
    assert set(seen) == {torch.bfloat16}
    assert model.weight.dtype == torch.float32


def test_progress_tells_where_the_training_is(model):
    events = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fit(model, optimizer, Batches(), epochs=2, validation=Batches(), log_every=3, on_event=events.append)

    assert [(e.kind, e.step, e.epoch) for e in events] == [
        ("start", 0, 1),
        ("step", 1, 1),
        ("step", 2, 1),
        ("step", 3, 1),
        ("epoch", 3, 1),
        ("step", 4, 2),
        ("step", 5, 2),
        ("step", 6, 2),
        ("epoch", 6, 2),
    ]
    assert events[0].remaining_seconds is None
    assert events[-1].remaining_seconds == 0
    assert events[-1].total_steps == 6
    assert 0 <= events[-1].validation_accuracy <= 1
    assert math.isfinite(events[-1].loss)


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": 0}, {"log_every": 0}, {"validate_every": -1}, {"checkpoint_every_steps": 0}, {"amp": "fp16"}],
    ids=str,
)
def test_an_option_out_of_range_is_named(model, wrong):
    options = {"epochs": 1} | wrong
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))}: got "):
        fit(model, torch.optim.SGD(model.parameters(), lr=0.1), Batches(), **options)


def test_without_training_mode_norms_stand_still_and_nothing_is_dropped() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.9), nn.Linear(4, 2))
    modes = []
    model[2].register_forward_hook(lambda layer, inputs, y: modes.append(layer.training))
    before = {name: value.clone() for name, value in model.state_dict().items()}

    fit(model, torch.optim.SGD(model.parameters(), lr=0.1), Batches(), epochs=1, training_mode=False)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert modes == [False] * 3
    assert changed == {name for name, _ in model.named_parameters()}
