"""The workers of a comparison: each run is a process's work in a folder of its own, and goes on where it stopped."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch

from qat_vsam.config import recipe_from
from qat_vsam.errors import RunFolderError, explain
from qat_vsam.recipes import assemble
from qat_vsam.recipes.cell import Cell, check_unchanged
from qat_vsam.recipes.checks import check_places
from qat_vsam.recipes.events import Listener
from qat_vsam.recipes.train import run_recipe
from qat_vsam.recipes.trial import run_trial
from qat_vsam.recipes.worker import begin_work, end_workers, leaving_at_a_stop, sigint_blocked, sigterm_interrupts
from qat_vsam.train import Interrupted


def run_cells(
    known: Callable[[], Sequence[Cell]],
    total: int,
    workers: int,
    data_root: Path | None = None,
    listener: Listener | None = None,
    *,
    command: str = "",
    keep: Callable[[Sequence[Cell]], None] = lambda finished: None,
) -> None:
    """Run every cell that has no result yet, `workers` at a time.

    Args:
        known: the cells that became known since it was called last, if any. It is called at first and after each run,
            so that what a run decides joins the same queue and no worker waits for the slowest of a stage.
        total: how many cells there will be in all.
        workers: processes.
        data_root: see `assemble.data_root`.
        listener: hears which runs are done.
        command: what repeats the runs.
        keep: called with cells that were found finished, and with each that is finished now.

    Raises:
        InputError, CheckpointError: data or weights that a run needs are not there; no run has begun.
        RunFolderError: a finished run belongs to another recipe, or a worker died.
    """
    listener = listener or Listener()
    queue = _Queue(known, keep)
    queue.refill()
    if queue.done == total:
        listener.say(f"all {total} runs are finished; nothing is left to train")
        return
    for recipe in {cell.arm: cell.recipe for cell in queue.waiting}.values():
        check_places(recipe, assemble.data_root(recipe, data_root))
    if queue.done:
        listener.say(f"{queue.done} of {total} runs are finished; going on with the rest")
    # spawned, not forked: a fork copies torch's thread pools in the middle of their work
    context = multiprocessing.get_context("spawn")
    others = multiprocessing.active_children()
    with sigterm_interrupts(), ProcessPoolExecutor(workers, mp_context=context, initializer=begin_work) as pool:
        running: dict[Future[None], Cell] = {}
        try:
            while queue.waiting or running:
                for cell in queue.take(workers - len(running)):
                    with sigint_blocked():
                        running[pool.submit(_run_cell, _plain(cell), data_root, command)] = cell
                if not running:
                    raise _stuck(queue.waiting[0])
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    cell = running.pop(future)
                    future.result()
                    keep([cell])
                    queue.done += 1
                    listener.grid(queue.done, total, str(cell))
                queue.refill()
        except BrokenProcessPool:
            raise RunFolderError(
                explain(
                    "worker",
                    "a process that died",
                    "workers that live",
                    "run the same command again; it resumes",
                )
            ) from None
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            cut_off = end_workers(others)
            if cut_off:
                listener.say(f"{cut_off} runs had no time for a checkpoint and go on from their last one")
            if isinstance(error, KeyboardInterrupt) and not isinstance(error, Interrupted):
                raise Interrupted(signal.SIGINT) from None
            raise


def _stuck(cell: Cell) -> RunFolderError:
    """For a run that starts from weights which a finished run has lost."""
    rule = "the weights that it starts from"
    advice = "delete the folder of that run, so that it is made again"
    return RunFolderError(explain(f"{cell}", f"no {cell.start}", rule, advice))


class _Queue:
    """The cells that wait: trials first, then seed by seed, so that a stopped grid has whole seeds to report."""

    def __init__(self, known: Callable[[], Sequence[Cell]], keep: Callable[[Sequence[Cell]], None]) -> None:
        self._known = known
        self._keep = keep
        self.waiting: list[Cell] = []
        self.done = 0

    def refill(self) -> None:
        while cells := self._known():
            for cell in cells:
                check_unchanged(cell)
            finished = [cell for cell in cells if cell.finished]
            self._keep(finished)
            self.done += len(finished)
            self.waiting += [cell for cell in cells if not cell.finished]
        # a stable sort: arms keep their order
        self.waiting.sort(key=lambda cell: (cell.setting is None, 0 if cell.setting else cell.seed))

    def take(self, count: int) -> list[Cell]:
        taken: list[Cell] = []
        for cell in self.waiting:
            if len(taken) == count:
                break
            if cell.ready:
                taken.append(cell)
        self.waiting = [cell for cell in self.waiting if cell not in taken]
        return taken


def _plain(cell: Cell) -> dict[str, Any]:
    return {
        "recipe": cell.recipe.model_dump(mode="json"),
        "folder": str(cell.folder),
        "start": None if cell.start is None else str(cell.start),
        "arm": cell.arm,
        "trial": cell.setting is not None,
    }


def _run_cell(cell: Mapping[str, Any], data_root: Path | None, command: str) -> None:
    """In a worker: one run on one thread, unless the recipe says otherwise."""
    recipe = recipe_from(cell["recipe"])
    torch.set_num_threads(recipe.threads or 1)
    start = None if cell["start"] is None else Path(cell["start"])
    with leaving_at_a_stop():
        if cell["trial"]:
            run_trial(recipe, cell["folder"], data_root=data_root)
        else:
            run_recipe(
                recipe, cell["folder"], data_root=data_root, start=start, arm=cell["arm"], command=command or None
            )
