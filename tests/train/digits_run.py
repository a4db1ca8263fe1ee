"""A small training on the bundled digits: run as a process that can be killed, or called from a test."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from qat_vsam.data import Batches, load_dataset
from qat_vsam.optim import SAM, VSAM, VSAMPaper
from qat_vsam.quant import QuantSpec, calibrate, param_groups, prepare
from qat_vsam.train import FitResult, Interrupted, Progress, RunFolder, fit

STEPS_PER_EPOCH = 6


def build_model(quantized: bool) -> nn.Module:
    """A net with what makes a resume hard: running statistics, random masks and, if wanted, quantizers."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )
    if quantized:
        prepare(model, QuantSpec.preset("w4a4"), torch.zeros(1, 1, 8, 8))
        calibrate(model, [torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(1))])
    return model


def build_optimizer(name: str, model: nn.Module) -> torch.optim.Optimizer:
    groups = param_groups(model, weight_decay=1e-4)
    options = {"model": model, "lr": 0.05, "momentum": 0.9}
    if name == "sam":
        return SAM(groups, torch.optim.SGD, **options)
    if name == "vsam-budget":
        return VSAM(groups, torch.optim.SGD, **options)
    if name == "vsam-paper":
        return VSAMPaper(groups, torch.optim.SGD, warmup_steps=12, window=10, **options)
    return torch.optim.SGD(groups, lr=0.05, momentum=0.9)


def train(
    folder: Path | str,
    optimizer: str = "sgd",
    amp: str | None = None,
    quantized: bool = False,
    epochs: int = 12,
    on_event: Callable[[Progress], None] | None = None,
) -> FitResult:
    torch.set_num_threads(1)
    model = build_model(quantized)
    built = build_optimizer(optimizer.removesuffix("-ema"), model)
    data = load_dataset("digits", train_size=300, validation_size=300, seed=0)
    normalise = {"mean": (0.3,), "std": (0.4,)}
    with RunFolder(folder, recipe=f"optimizer: {optimizer}\namp: {amp}\nepochs: {epochs}\n") as run:
        return fit(
            model,
            built,
            Batches(data.train, 50, augment="shift", shuffle=True, seed=3, **normalise),
            run=run,
            epochs=epochs,
            lr_scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(built, epochs * STEPS_PER_EPOCH),
            validation=Batches(data.validation, 300, **normalise),
            validate_every=2,
            amp=amp,
            ema=0.9 if optimizer.endswith("-ema") else None,
            log_every=1,
            checkpoint_every_steps=4,
            on_event=on_event,
        )


if __name__ == "__main__":
    try:
        train(sys.argv[1])
    except Interrupted as stop:
        sys.exit(stop.exit_code)
