"""The grid job: every arm with every seed, a step-time bench of the arms, and the report.

Each run is a process's work in a folder of its own, so the grid skips what is finished and goes on with what
was stopped; the same command ends what a kill interrupted.
"""

from __future__ import annotations

import json
import multiprocessing
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from qat_vsam.config import BenchSection, Comparison, Recipe, dump_yaml, fingerprint, recipe_from
from qat_vsam.errors import RunFolderError, explain
from qat_vsam.recipes import assemble
from qat_vsam.recipes.benchmark import bench_arms
from qat_vsam.recipes.events import Listener
from qat_vsam.recipes.train import WEIGHTS, run_recipe
from qat_vsam.report import build_report
from qat_vsam.train import Interrupted, write_atomic


@dataclass(frozen=True)
class Cell:
    """One arm with one seed."""

    arm: str
    seed: int
    recipe: Recipe
    folder: Path
    start: Path | None

    @property
    def finished(self) -> bool:
        """Whether its result is there."""
        return (self.folder / "result.json").is_file()

    @property
    def ready(self) -> bool:
        """Whether the run it starts from has written its weights."""
        return self.start is None or (self.start.parent / "result.json").is_file()


def compare(
    comparison: Comparison,
    folder: str | Path,
    *,
    data_root: Path | None = None,
    listener: Listener | None = None,
    command: str = "",
) -> Path:
    """Run what is missing of the grid, time the arms, write the report.

    Args:
        comparison: arms, seeds, and the recipe that they change.
        folder: runs go to `folder/ARM/seed-K`, the report to `folder/report`.
        data_root: see `assemble.data_root`.
        listener: hears which runs are done.
        command: what repeats this, for the report.

    Returns:
        The report's `index.html`.

    Raises:
        InputError: an arm cannot be; nothing has been trained.
        RunFolderError: a run belongs to another recipe, or a worker died.
    """
    listener = listener or Listener()
    folder = Path(folder)
    cells = list(grid(comparison, folder))
    for cell in cells:
        if cell.seed == 0:
            assemble.check_names(cell.recipe)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "comparison.yaml", dump_yaml(comparison).encode())
    _run_grid(cells, comparison.workers, data_root, listener)
    bench = folder / "bench.json"
    if comparison.bench is not None:
        arms = {cell.arm: cell.recipe for cell in cells if cell.seed == 0}
        _keep_bench(bench, arms, comparison.bench, data_root, listener)
    return build_report(
        folder,
        folder / "report",
        title=comparison.title,
        bench=bench if bench.exists() else None,
        command=command,
        description=comparison.description,
        notes=comparison.notes,
    )


def _keep_bench(
    path: Path, arms: Mapping[str, Recipe], section: BenchSection, data_root: Path | None, listener: Listener
) -> None:
    """Time the arms, unless that was done for these very recipes."""
    timed = {arm: fingerprint(recipe) for arm, recipe in arms.items()} | {"bench": fingerprint(section)}
    if path.exists() and json.loads(path.read_text()).get("timed") == timed:
        return
    listener.say("timing the arms, step by step in turn")
    measured = bench_arms(arms, section, data_root)
    write_atomic(path, json.dumps(measured | {"timed": timed}, indent=2).encode())


def grid(comparison: Comparison, folder: Path) -> Iterator[Cell]:
    """All cells, seed by seed, so that a stopped grid has whole seeds to report."""
    for seed in range(comparison.seeds):
        for arm in comparison.arms:
            recipe = comparison.arm(arm, seed)
            start = None
            if recipe.init_from is not None:
                start = folder / recipe.init_from / f"seed-{seed}" / WEIGHTS
            yield Cell(arm, seed, recipe, folder / arm / f"seed-{seed}", start)


def _run_grid(cells: Sequence[Cell], workers: int, data_root: Path | None, listener: Listener) -> None:
    waiting = [cell for cell in cells if not cell.finished]
    done = len(cells) - len(waiting)
    if not waiting:
        listener.say(f"all {len(cells)} runs are finished; nothing is left to train")
        return
    if done:
        listener.say(f"{done} of {len(cells)} runs are finished; going on with the rest")
    # spawned, not forked: a fork copies torch's thread pools in the middle of their work
    context = multiprocessing.get_context("spawn")
    with _sigterm_interrupts(), ProcessPoolExecutor(workers, mp_context=context) as pool:
        running: dict[Future[str], Cell] = {}
        try:
            while waiting or running:
                for cell in [cell for cell in waiting if cell.ready][: workers - len(running)]:
                    waiting.remove(cell)
                    running[pool.submit(_run_cell, _plain(cell), data_root)] = cell
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    cell = running.pop(future)
                    future.result()
                    done += 1
                    listener.grid(done, len(cells), f"{cell.arm} seed {cell.seed}")
        except BrokenProcessPool:
            raise RunFolderError(
                explain(
                    "worker",
                    "a process that died",
                    "workers that live",
                    "run the same command again; it resumes",
                )
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in multiprocessing.active_children():
                worker.terminate()  # a run under way writes its checkpoint first
            raise


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM end the block like Ctrl-C does, so that the workers are stopped with it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Interrupted(signum)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _plain(cell: Cell) -> dict[str, Any]:
    return {
        "recipe": cell.recipe.model_dump(mode="json"),
        "folder": str(cell.folder),
        "start": None if cell.start is None else str(cell.start),
        "arm": cell.arm,
    }


def _run_cell(cell: Mapping[str, Any], data_root: Path | None) -> str:
    """In a worker: one run on one thread, unless the recipe says otherwise."""
    recipe = recipe_from(cell["recipe"])
    torch.set_num_threads(recipe.threads or 1)
    try:
        run_recipe(
            recipe,
            cell["folder"],
            data_root=data_root,
            start=None if cell["start"] is None else Path(cell["start"]),
            arm=cell["arm"],
        )
    except Interrupted as stop:
        # what a worker raises must survive the way to its parent, which has been told by the signal itself
        raise RunFolderError(str(stop)) from None
    return str(cell["folder"])
