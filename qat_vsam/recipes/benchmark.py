"""Step times of a comparison's arms, in one process and in turn, in units of a float32 SGD step of the same net."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from scipy import stats

from qat_vsam.config import BenchSection, OptimizerSection, Recipe
from qat_vsam.evaluate import Timing, interleave
from qat_vsam.optim import BudgetSchedule
from qat_vsam.recipes import assemble
from qat_vsam.recipes.optimizers import build_optimizer, in_miniature
from qat_vsam.train import training_step

WARMUP_ROUNDS = 5
UNIT = "float32 SGD step"
CONFIDENCE = 0.95


def bench_arms(
    recipes: Mapping[str, Recipe], section: BenchSection, data_root: Path | None = None, threads: int = 1
) -> dict[str, Any]:
    """Time the training steps of each arm on its own batches, against those of plain SGD on the net in float32.

    One sample is a run in miniature, `section.steps` steps long: a budget that is spent early or now and then is
    timed in the mixture of steps that a whole run has. The published schedule adapts over hundreds of steps and
    goes on from sample to sample, its warm-up left out.

    Args:
        recipes: arm -> recipe; arms without training are skipped. The first that trains in float32 with plain SGD is
            the unit; where there is none, the first that trains is timed as that too.
        section: how long to time.
        data_root: see `assemble.data_root`.
        threads: of torch while timing.

    Returns:
        The content of `bench.json`: for each arm the median milliseconds a step, and the median over rounds of its
        ratio to the unit within the round, with the interval of that median.
    """
    trained = {arm: recipe for arm, recipe in recipes.items() if recipe.train.epochs > 0}
    unit = next((arm for arm, recipe in trained.items() if _is_unit(recipe)), None)
    timed = dict(trained)
    if unit is None and trained:
        unit = UNIT
        timed[UNIT] = as_unit(next(iter(trained.values())))
    with torch_threads(threads):
        workloads = {arm: _workload(recipe, section, data_root) for arm, recipe in timed.items()}
        timings = interleave(workloads, repeats=section.repeats, warmup=WARMUP_ROUNDS)
    rows = [] if unit is None else [_row(arm, timings[arm], timings[unit], section) for arm in trained]
    return {
        "unit": UNIT,
        "threads": threads,
        "repeats": section.repeats,
        "steps": section.steps,
        "unit_ms": None if unit is None else 1000 * timings[unit].median / section.steps,
        "rows": rows,
    }


def as_unit(recipe: Recipe) -> Recipe:
    """The recipe in float32 with plain SGD: the same net, images and batch size."""
    optimizer = OptimizerSection(name="sgd", base="sgd", lr=recipe.optimizer.lr)
    return recipe.model_copy(update={"quant": None, "optimizer": optimizer})


def _is_unit(recipe: Recipe) -> bool:
    return recipe.quant is None and recipe.optimizer.name == "sgd" and recipe.optimizer.base == "sgd"


def median_interval(values: list[float]) -> tuple[float, float]:
    """The 95 % interval of a median, whatever the distribution: from the k-th smallest value to the k-th largest.

    k is the largest with P(fewer than k of n values lie below the median) <= 0.025, each side with chance 1/2. Six
    values are the fewest that have one.

    Example:
        >>> median_interval([6.0, 1.0, 2.0, 5.0, 3.0, 4.0])
        (1.0, 6.0)
        >>> median_interval([float(value) for value in range(1, 31)])
        (10.0, 21.0)
    """
    ordered = sorted(values)
    # ppf gives the smallest count whose probability reaches the tail, so one fewer is still below it
    k = int(stats.binom.ppf((1 - CONFIDENCE) / 2, len(ordered), 0.5))
    return ordered[max(k, 1) - 1], ordered[-max(k, 1)]


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
    recipe = recipe.model_copy(update={"optimizer": in_miniature(recipe.optimizer, section.steps)})
    if section.batch_size is not None:
        data_section = recipe.data.model_copy(update={"batch_size": section.batch_size})
        recipe = recipe.model_copy(update={"data": data_section})
    loaders = assemble.loaders(recipe, assemble.dataset(recipe, root))
    model = assemble.float_model(recipe, root)
    if recipe.quant is not None:
        assemble.quantize_model(recipe, model, loaders.calibration)
    model.train()
    if recipe.train.compile_model:
        model.compile()
    optimizer: Any = build_optimizer(recipe, model, len(loaders.train))
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


def _row(arm: str, own: Timing, unit: Timing, section: BenchSection) -> dict[str, Any]:
    # within a round, for all workloads of one meet the machine's load alike
    ratios = [a / b for a, b in zip(own.times, unit.times, strict=True)]
    low, high = median_interval(ratios)
    return {
        "arm": arm,
        "median_ms": 1000 * own.median / section.steps,
        "ratio": statistics.median(ratios),
        "ratio_low": low,
        "ratio_high": high,
        "n": len(ratios),
    }
