"""Step times of a comparison's arms, in one process and in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from qat_vsam.config import BenchSection, Recipe
from qat_vsam.evaluate import Timing, interleave, median_ratio
from qat_vsam.optim import BudgetSchedule
from qat_vsam.recipes import assemble
from qat_vsam.recipes.optimizers import build_optimizer, in_miniature
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
    recipe = recipe.model_copy(update={"optimizer": in_miniature(recipe.optimizer, section.steps)})
    if section.batch_size is not None:
        data_section = recipe.data.model_copy(update={"batch_size": section.batch_size})
        recipe = recipe.model_copy(update={"data": data_section})
    loaders = assemble.loaders(recipe, assemble.dataset(recipe, root))
    model = assemble.float_model(recipe, root)
    if recipe.quant is not None:
        assemble.quantize_model(recipe, model, loaders.calibration)
    model.train()
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


def _row(arm: str, reference: str | None, timings: Mapping[str, Timing], section: BenchSection) -> dict[str, Any]:
    return {
        "arm": arm,
        "median_ms": 1000 * timings[arm].median / section.steps,
        "ratio_to_sgd": None if reference is None else median_ratio(timings[arm], timings[reference]),
        "reference_arm": reference,
        "n": section.repeats,
    }
