"""Step times of a comparison's arms: all in one process, in turn, as ratios to SGD at the same precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from qat_vsam.config import BenchSection, Recipe
from qat_vsam.evaluate import Timing, interleave, median_ratio
from qat_vsam.recipes import assemble
from qat_vsam.train import training_step

WARMUP_ROUNDS = 5


def bench_arms(
    recipes: Mapping[str, Recipe], section: BenchSection, data_root: Path | None = None, threads: int = 1
) -> dict[str, Any]:
    """Time the training steps of each arm on its own batches.

    One sample is `section.steps` consecutive steps, so that a schedule which pays on every second step is
    timed over whole periods. A schedule that changes over a run is timed as it starts, its warm-up left out.

    Args:
        recipes: arm -> recipe; arms without training are skipped.
        section: how long to time.
        data_root: see `assemble.data_root`.
        threads: of torch while timing.

    Returns:
        The content of `bench.json`: for each arm the median milliseconds a step, and the median ratio to the
        arm that trains the same precision with plain SGD, where there is one.
    """
    trained = {arm: recipe for arm, recipe in recipes.items() if recipe.train.epochs > 0}
    with torch_threads(threads):
        workloads = {arm: _workload(recipe, section, data_root) for arm, recipe in trained.items()}
        timings = interleave(workloads, repeats=section.repeats, warmup=WARMUP_ROUNDS)
    rows = [_row(arm, trained, timings, section) for arm in trained]
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
    if recipe.optimizer.options.get("schedule") == "variance":
        options = recipe.optimizer.model_dump() | {"warmup_steps": 0}
        recipe = recipe.model_copy(update={"optimizer": type(recipe.optimizer).model_validate(options)})
    if section.batch_size is not None:
        data_section = recipe.data.model_copy(update={"batch_size": section.batch_size})
        recipe = recipe.model_copy(update={"data": data_section})
    loaders = assemble.loaders(recipe, assemble.dataset(recipe, root))
    model = assemble.float_model(recipe, root)
    if recipe.quant is not None:
        assemble.quantize_model(recipe, model, loaders.calibration)
    model.train()
    optimizer = assemble.build_optimizer(recipe, model, len(loaders.train))
    loss = assemble.loss_function(recipe)
    batches = list(islice(_endless(loaders), section.steps))

    def run() -> None:
        for x, y in batches:
            training_step(model, optimizer, loss, x, y, recipe.amp)

    return run


def _endless(loaders: assemble.Loaders) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    epoch = 0
    while True:
        yield from loaders.train.epoch(epoch)
        epoch += 1


def _row(
    arm: str, recipes: Mapping[str, Recipe], timings: Mapping[str, Timing], section: BenchSection
) -> dict[str, Any]:
    precision = recipes[arm].precision
    references = [a for a, r in recipes.items() if r.precision == precision and r.optimizer.name == "sgd"]
    reference = references[0] if references else None
    return {
        "arm": arm,
        "median_ms": 1000 * timings[arm].median / section.steps,
        "ratio_to_sgd": None if reference is None else median_ratio(timings[arm], timings[reference]),
        "reference_arm": reference,
        "n": section.repeats,
    }
