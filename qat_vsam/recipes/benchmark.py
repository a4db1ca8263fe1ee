"""Step times in one process, in turn: of a comparison's arms, or of ResNets against other implementations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from qat_vsam.config import BenchSection, Recipe
from qat_vsam.evaluate import (
    StepWorkload,
    Timing,
    interleave,
    median_ratio,
    resnet18_workloads,
    resnet20_workloads,
)
from qat_vsam.optim import VSAM, BudgetSchedule
from qat_vsam.quant import param_groups
from qat_vsam.recipes import assemble
from qat_vsam.recipes.events import Listener
from qat_vsam.report import assign_roles
from qat_vsam.train import training_step

WARMUP_ROUNDS = 5


def bench_arms(
    recipes: Mapping[str, Recipe],
    section: BenchSection,
    data_root: Path | None = None,
    threads: int = 1,
    roles: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Time the training steps of each arm on its own batches.

    One sample is a run in miniature, `section.steps` steps long: a budget that is spent early or now and then is
    timed in the mixture of steps that a whole run has. The published schedule adapts over hundreds of steps and
    goes on from sample to sample, its warm-up left out.

    Args:
        recipes: arm -> recipe; arms without training are skipped.
        section: how long to time.
        data_root: see `assemble.data_root`.
        threads: of torch while timing.
        roles: arm -> role, of the arms whose recipe says it; see `report.assign_roles`.

    Returns:
        The content of `bench.json`: for each arm the median milliseconds a step, and the median ratio to the
        arm that is the SGD of the same precision, where there is one.
    """
    trained = {arm: recipe for arm, recipe in recipes.items() if recipe.train.epochs > 0}
    with torch_threads(threads):
        workloads = {arm: _workload(recipe, section, data_root) for arm, recipe in trained.items()}
        timings = interleave(workloads, repeats=section.repeats, warmup=WARMUP_ROUNDS)
    arms = [(arm, recipe.precision, recipe.precision, recipe.optimizer.name) for arm, recipe in trained.items()]
    found = zip(trained.items(), assign_roles(arms, roles or {}), strict=True)
    # the first of each precision, where several say that they are
    references = {recipe.precision: arm for (arm, recipe), role in reversed(list(found)) if role == "sgd"}
    rows = [_row(arm, references.get(recipe.precision), timings, section) for arm, recipe in trained.items()]
    return {"threads": threads, "repeats": section.repeats, "steps": section.steps, "rows": rows}


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Run the block on that many threads of torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _workload(recipe: Recipe, section: BenchSection, data_root: Path | None) -> Callable[[], None]:
    root = assemble.data_root(recipe, data_root)
    if recipe.optimizer.name == "vsam":
        miniature = {"warmup_steps": 0, "total_steps": section.steps}
        options = recipe.optimizer.model_dump() | miniature
        recipe = recipe.model_copy(update={"optimizer": type(recipe.optimizer).model_validate(options)})
    if section.batch_size is not None:
        data_section = recipe.data.model_copy(update={"batch_size": section.batch_size})
        recipe = recipe.model_copy(update={"data": data_section})
    loaders = assemble.loaders(recipe, assemble.dataset(recipe, root))
    model = assemble.float_model(recipe, root)
    if recipe.quant is not None:
        assemble.quantize_model(recipe, model, loaders.calibration)
    model.train()
    optimizer: Any = assemble.build_optimizer(recipe, model, len(loaders.train))
    starts_anew = isinstance(getattr(optimizer, "schedule", None), BudgetSchedule)
    start = optimizer.schedule.state_dict() if starts_anew else {}
    loss = assemble.loss_function(recipe)
    batches = list(islice(_endless(loaders), section.steps))

    def run() -> None:
        if starts_anew:
            optimizer.schedule.load_state_dict(start)
        for x, y in batches:
            training_step(model, optimizer, loss, x, y, recipe.amp)

    return run


def _endless(loaders: assemble.Loaders) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    epoch = 0
    while True:
        yield from loaders.train.epoch(epoch)
        epoch += 1


def _row(arm: str, reference: str | None, timings: Mapping[str, Timing], section: BenchSection) -> dict[str, Any]:
    return {
        "arm": arm,
        "median_ms": 1000 * timings[arm].median / section.steps,
        "ratio_to_sgd": None if reference is None else median_ratio(timings[arm], timings[reference]),
        "reference_arm": reference,
        "n": section.repeats,
    }


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
        head = f"{self.title:<34}{'ms a step':>10}{'quartiles':>16}{'x float32':>11}{'gradients':>11}{'x declared':>12}"
        return [head, *(_step_line(row) for row in self.rows)]


def bench_steps(*, repeats: int = 30, threads: int = 1, listener: Listener | None = None) -> Iterator[StepTable]:
    """Time training steps of ResNet-20 (batch 128) and ResNet-18 (batch 32 at 64 x 64) on random images.

    Plain SGD and VSAM, float32 in channels_last and W4A4, our LSQ layers eager and compiled, beside the same policy
    in brevitas' layers and in PyTorch's learnable operator.

    Args:
        repeats: timed rounds of two steps each.
        threads: of torch.
        listener: hears how far it is.

    Yields:
        A table as soon as its network is timed.
    """
    listener = listener or Listener()
    optimizers = {"sgd": _plain_sgd, "vsam": _default_vsam}
    for title, build in (
        ("ResNet-20, batch 128, 32 x 32", resnet20_workloads),
        ("ResNet-18, batch 32, 64 x 64", resnet18_workloads),
    ):
        listener.say(f"timing {title}: {repeats} rounds on {threads} thread(s)")
        with torch_threads(threads):
            workloads = build(optimizers)
            timings = interleave(workloads, repeats=repeats, warmup=WARMUP_ROUNDS)
        yield StepTable(title, tuple(_step_rows(workloads, timings)))


def _plain_sgd(model: nn.Module) -> Optimizer:
    return torch.optim.SGD(param_groups(model), lr=0.01, momentum=0.9)


def _default_vsam(model: nn.Module) -> Optimizer:
    return VSAM(param_groups(model), torch.optim.SGD, model=model, lr=0.01, momentum=0.9, rho=0.05)


def _step_rows(workloads: Mapping[str, StepWorkload], timings: Mapping[str, Timing]) -> Iterator[StepRow]:
    for name, workload in workloads.items():
        timing, evaluations = timings[name], workload.gradient_evaluations_per_step
        plain = timings[f"{name.split()[0]} sgd"]
        first, third = timing.quartiles
        yield StepRow(
            name=name,
            median_ms=1000 * timing.median / workload.steps,
            quartiles_ms=(1000 * first / workload.steps, 1000 * third / workload.steps),
            ratio_to_float=median_ratio(timing, timings["float32 sgd"]),
            gradient_evaluations=evaluations,
            ratio_to_declared=median_ratio(timing, plain) / evaluations if evaluations > 1 else None,
        )


def _step_line(row: StepRow) -> str:
    declared = "" if row.ratio_to_declared is None else f"{row.ratio_to_declared:.3f}"
    quartiles = f"{row.quartiles_ms[0]:.1f}-{row.quartiles_ms[1]:.1f}"
    return (
        f"  {row.name:<32}{row.median_ms:>10.1f}{quartiles:>16}{row.ratio_to_float:>11.3f}"
        f"{row.gradient_evaluations:>11.3f}{declared:>12}"
    )
