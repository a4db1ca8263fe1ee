"""VSAM as it comes, no option given, on four small tasks of unlike kinds: it must not cost accuracy against plain SGD.

Each task is trained with eight seeds by SGD and by VSAM, seed by seed alike, at W4A4 or W8A8. The score is in
points: test accuracy in %, or 100 times the share of the variance that is explained.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, mse_loss

import qat_vsam as qv

SEEDS = 8
MOST_LOST = 0.3  # points, in the mean of the seeds
BATCH = 50


@dataclass(frozen=True)
class Task:
    """Training and test data, a network for them, and how long it is trained."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    network: Callable[[], nn.Module]
    bits: str
    epochs: int
    lr: float


def convolutions() -> nn.Module:
    def block(channels: int, out: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]

    layers = [*block(1, 8, 1), *block(8, 16, 2), *block(16, 16, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def digits(label_noise: float) -> Task:
    data = qv.load_dataset("digits", label_noise=label_noise, train_size=700, validation_size=100)

    def pixels(split: qv.Split) -> Tensor:
        return (split.images.float() / 255 - 0.3) / 0.375

    train, test = data.train, data.test
    return Task(pixels(train), train.labels, pixels(test), test.labels, convolutions, "w4a4", 15, 0.1)


def generated_images() -> Task:
    """Ten smooth patterns, shifted by up to two pixels, under as much noise: 600 images of 10 x 10 to learn from."""
    generator = torch.Generator().manual_seed(0)
    patterns = avg_pool2d(torch.randn(10, 1, 10, 10, generator=generator), 3, 1, 1) * 3

    def draw(count: int) -> tuple[Tensor, Tensor]:
        labels = torch.randint(0, 10, (count,), generator=generator)
        shifts = torch.randint(-2, 3, (count, 2), generator=generator).tolist()
        images = [torch.roll(patterns[label], shift, (1, 2)) for label, shift in zip(labels, shifts, strict=True)]
        return torch.stack(images) + 0.7 * torch.randn(count, 1, 10, 10, generator=generator), labels

    return Task(*draw(800), *draw(2000), convolutions, "w4a4", 12, 0.1)


def regression() -> Task:
    """Friedman's function of ten numbers, five of them without effect, with noise."""
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        x = torch.rand(count, 10, generator=generator)
        y = 10 * torch.sin(math.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
        return (x - 0.5) * math.sqrt(12), (y + torch.randn(count, generator=generator) - 14.4) / 4.9

    def network() -> nn.Module:
        return nn.Sequential(
            nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1), nn.Flatten(0)
        )

    return Task(*draw(1500), *draw(3000), network, "w8a8", 12, 0.02)


TASKS: dict[str, Callable[[], Task]] = {
    "digits": lambda: digits(0.0),
    "digits with wrong labels": lambda: digits(0.3),
    "generated images": generated_images,
    "regression": regression,
}


def score(task: Task, seed: int, member: type[torch.optim.Optimizer]) -> float:
    """In points, after training with one seed of the weights and of the order of the data."""
    torch.manual_seed(seed)
    model = task.network()
    qv.prepare(model, qv.QuantSpec.preset(task.bits))
    model.train()
    qv.calibrate(model, [(task.x[:200], task.y[:200])])
    groups = qv.param_groups(model, weight_decay=5e-4)
    for group in groups:
        if group["role"] == "step_size":
            group["lr"] = task.lr / 10
    loss_of = cross_entropy if task.y.dtype == torch.int64 else mse_loss
    optimizer: Any = torch.optim.SGD(groups, lr=task.lr, momentum=0.9)
    if member is qv.VSAM:
        optimizer = qv.VSAM(groups, torch.optim.SGD, model=model, lr=task.lr, momentum=0.9)
    by_rows = {"batch_size": BATCH} if member is qv.VSAM else {}
    batches = len(task.x) // BATCH
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, task.epochs * batches)
    for _ in range(task.epochs):
        for rows_of_batch in torch.randperm(len(task.x))[: batches * BATCH].split(BATCH):
            x, y = task.x[rows_of_batch], task.y[rows_of_batch]

            def closure(rows: slice = slice(None), x: Tensor = x, y: Tensor = y) -> Tensor:
                optimizer.zero_grad()
                loss = loss_of(model(x[rows]), y[rows])
                loss.backward()
                return loss

            optimizer.step(closure, **by_rows)
            scheduler.step()
    model.eval()
    with torch.no_grad():
        answers = model(task.test_x)
    if loss_of is mse_loss:
        return 100 * (1 - float(mse_loss(answers, task.test_y) / task.test_y.var()))
    return 100 * float((answers.argmax(1) == task.test_y).float().mean())


@pytest.mark.parametrize("name", TASKS)
def test_vsam_as_it_comes_is_not_below_sgd(name: str) -> None:
    task = TASKS[name]()
    differences = [score(task, seed, qv.VSAM) - score(task, seed, torch.optim.SGD) for seed in range(SEEDS)]
    assert fmean(differences) > -MOST_LOST
