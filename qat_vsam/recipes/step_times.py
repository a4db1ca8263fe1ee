"""Step times of networks of 0.1 M to 90 M parameters, and of ResNets against other implementations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from qat_vsam.evaluate import (
    StepWorkload,
    Timing,
    interleave,
    median_ratio,
    resnet18_workloads,
    resnet20_workloads,
    step_workloads,
)
from qat_vsam.models import build_model
from qat_vsam.optim import SAM, VSAM, SharpnessAware
from qat_vsam.quant import param_groups
from qat_vsam.recipes.benchmark import torch_threads
from qat_vsam.recipes.events import Listener

WARMUP_ROUNDS = 1
# After ten steps VSAM at its default budget of 1.15 has paid for exactly six quarters of a batch.
PERIOD = 10

# model, its options, (B, C, H, W)
SIZES: tuple[tuple[str, dict[str, Any], tuple[int, int, int, int]], ...] = (
    ("small_cnn", {}, (100, 3, 16, 16)),
    ("cifar_resnet20", {}, (128, 3, 32, 32)),
    ("torchvision:resnet18", {"num_classes": 10}, (32, 3, 64, 64)),
    ("torchvision:resnet50", {"num_classes": 10}, (16, 3, 64, 64)),
    ("torchvision:vit_b_16", {"num_classes": 10, "image_size": 64}, (16, 3, 64, 64)),
)


@dataclass(frozen=True)
class StepRow:
    """One workload of `bench_steps`.

    Attributes:
        name: precision, optimizer, implementation.
        median_ms: of one training step.
        quartiles_ms: first and third.
        ratio_to_float: median ratio, round by round, to the float32 step of plain SGD.
        gradient_evaluations: a step, as declared.
        ratio_to_declared: median ratio to the plain step of the same precision times the declared evaluations;
            None for plain steps.
    """

    name: str
    median_ms: float
    quartiles_ms: tuple[float, float]
    ratio_to_float: float
    gradient_evaluations: float
    ratio_to_declared: float | None


@dataclass(frozen=True)
class StepTable:
    """Step times of one network."""

    title: str
    rows: tuple[StepRow, ...]

    def lines(self) -> list[str]:
        """As aligned text."""
        head = f"{self.title:<58}{'ms a step':>10}{'quartiles':>16}{'x float32':>11}{'gradients':>11}{'x declared':>12}"
        return [head, *(_step_line(row) for row in self.rows)]


def bench_steps(*, repeats: int = 8, threads: int = 1, listener: Listener | None = None) -> Iterator[StepTable]:
    """Time training steps of ResNet-20 (batch 128) and ResNet-18 (batch 32 at 64 x 64) on random images.

    SGD, VSAM and SAM, float32 in channels_last and W4A4; SGD also with eager quantizers, with the whole model compiled
    (float32 and bfloat16), with brevitas' layers and with PyTorch's learnable operator, all under the same policy.

    Args:
        repeats: timed rounds of ten steps of each workload, a step of each in turn.
        threads: of torch.
        listener: hears how far it is.

    Yields:
        A table as soon as its network is timed.
    """
    for title, build in (
        ("ResNet-20, batch 128, 32 x 32", resnet20_workloads),
        ("ResNet-18, batch 32, 64 x 64", resnet18_workloads),
    ):
        yield _time(title, partial(build, OPTIMIZERS, steps=1), repeats, threads, listener)


def bench_sizes(*, repeats: int = 8, threads: int = 1, listener: Listener | None = None) -> Iterator[StepTable]:
    """Time float32 training steps of SGD, VSAM and SAM on networks of 0.1 M to 90 M parameters, on random images.

    Args:
        repeats: timed rounds of ten steps of each workload, a step of each in turn.
        threads: of torch.
        listener: hears how far it is.

    Yields:
        A table as soon as its network is timed.
    """
    for name, options, shape in SIZES:
        model = build_model(name, seed=0, **options)
        millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        title = f"{name}, {millions:.2f} M, batch {shape[0]}, {shape[2]} x {shape[3]}"
        build = partial(step_workloads, model, shape, OPTIMIZERS, implementations=(), steps=1)
        yield _time(title, build, repeats, threads, listener)


def _time(
    title: str,
    build: Callable[[], Mapping[str, StepWorkload]],
    repeats: int,
    threads: int,
    listener: Listener | None,
) -> StepTable:
    (listener or Listener()).say(f"timing {title}: {repeats} rounds of {PERIOD} steps on {threads} thread(s)")
    with torch_threads(threads):
        workloads = build()
        timings = interleave(workloads, repeats=repeats, warmup=WARMUP_ROUNDS, turns=PERIOD)
    return StepTable(title, tuple(_step_rows(workloads, timings)))


def _sgd(model: nn.Module) -> Optimizer:
    return torch.optim.SGD(param_groups(model), lr=0.01, momentum=0.9)


def _around_sgd(member: type[SharpnessAware]) -> Callable[[nn.Module], Optimizer]:
    return lambda model: member(param_groups(model), torch.optim.SGD, model=model, lr=0.01, momentum=0.9)


OPTIMIZERS = {"sgd": _sgd, "vsam": _around_sgd(VSAM), "sam": _around_sgd(SAM)}


def _step_rows(workloads: Mapping[str, StepWorkload], timings: Mapping[str, Timing]) -> Iterator[StepRow]:
    for name, workload in workloads.items():
        timing, evaluations = timings[name], workload.gradient_evaluations_per_step
        plain = timings[f"{name.split()[0]} sgd"]
        first, third = timing.quartiles
        yield StepRow(
            name=name,
            median_ms=1000 * timing.median / PERIOD,
            quartiles_ms=(1000 * first / PERIOD, 1000 * third / PERIOD),
            ratio_to_float=median_ratio(timing, timings["float32 sgd"]),
            gradient_evaluations=evaluations,
            ratio_to_declared=median_ratio(timing, plain) / evaluations if evaluations > 1 else None,
        )


def _step_line(row: StepRow) -> str:
    declared = "" if row.ratio_to_declared is None else f"{row.ratio_to_declared:.3f}"
    quartiles = f"{row.quartiles_ms[0]:.1f}-{row.quartiles_ms[1]:.1f}"
    return (
        f"  {row.name:<56}{row.median_ms:>10.1f}{quartiles:>16}{row.ratio_to_float:>11.3f}"
        f"{row.gradient_evaluations:>11.3f}{declared:>12}"
    )
