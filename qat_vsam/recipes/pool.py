"""The workers of a comparison: each run is a process's work in a folder of its own, and goes on where it stopped."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from qat_vsam.config import Recipe, fingerprint, read_recipe_file, recipe_from
from qat_vsam.errors import ConfigError, RunFolderError, explain
from qat_vsam.recipes.events import Listener
from qat_vsam.recipes.train import read_result, run_recipe
from qat_vsam.recipes.trial import run_trial
from qat_vsam.train import Interrupted


@dataclass(frozen=True)
class Cell:
    """One run of a comparison: an arm with one seed.

    Attributes:
        arm, seed: which.
        recipe: what to do.
        folder: where.
        start: the weights of another run that it starts from.
        setting: the name of what is tried; None for a run whose test images count.
    """

    arm: str
    seed: int
    recipe: Recipe
    folder: Path
    start: Path | None = None
    setting: str | None = None

    def __str__(self) -> str:
        tried = "" if self.setting is None else f" {self.setting}"
        return f"{self.arm}{tried} seed {self.seed}"

    @property
    def finished(self) -> bool:
        """Whether its result is there."""
        return (self.folder / "result.json").is_file()

    @property
    def ready(self) -> bool:
        """Whether the run it starts from has written its weights."""
        return self.start is None or (self.start.parent / "result.json").is_file()


def run_cells(
    known: Callable[[], Sequence[Cell]],
    total: int,
    workers: int,
    data_root: Path | None = None,
    listener: Listener | None = None,
) -> None:
    """Run every cell that has no result yet, `workers` at a time.

    Args:
        known: the cells that became known since it was called last, if any. It is called at first and after each run,
            so that what a run decides joins the same queue and no worker waits for the slowest of a stage.
        total: how many cells there will be in all.
        workers: processes.
        data_root: see `assemble.data_root`.
        listener: hears which runs are done.

    Raises:
        RunFolderError: a finished run belongs to another recipe, or a worker died.
    """
    listener = listener or Listener()
    queue = _Queue(known)
    queue.refill()
    if queue.done == total:
        listener.say(f"all {total} runs are finished; nothing is left to train")
        return
    if queue.done:
        listener.say(f"{queue.done} of {total} runs are finished; going on with the rest")
    # spawned, not forked: a fork copies torch's thread pools in the middle of their work
    context = multiprocessing.get_context("spawn")
    with _sigterm_interrupts(), ProcessPoolExecutor(workers, mp_context=context) as pool:
        running: dict[Future[None], Cell] = {}
        try:
            while queue.waiting or running:
                for cell in queue.take(workers - len(running)):
                    running[pool.submit(_run_cell, _plain(cell), data_root)] = cell
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    cell = running.pop(future)
                    future.result()
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
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in multiprocessing.active_children():
                worker.terminate()  # a run under way writes its checkpoint first
            raise


class _Queue:
    """The cells that wait: trials first, then seed by seed, so that a stopped grid has whole seeds to report."""

    def __init__(self, known: Callable[[], Sequence[Cell]]) -> None:
        self._known = known
        self.waiting: list[Cell] = []
        self.done = 0

    def refill(self) -> None:
        while cells := self._known():
            for cell in cells:
                if cell.finished:
                    check_unchanged(cell)
                    self.done += 1
                else:
                    self.waiting.append(cell)
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


def check_unchanged(cell: Cell) -> None:
    """A finished run counts only for the recipe that it was made with; its label may differ.

    Raises:
        RunFolderError: naming the folder.
    """
    if read_result(cell.folder).get("recipe_sha256") == fingerprint(cell.recipe):
        return
    path = cell.folder / "recipe.yaml"
    try:
        # a key that is newer than the run has its default there
        kept = recipe_from(read_recipe_file(path))
    except ConfigError as error:
        raise RunFolderError(str(error)) from None
    if fingerprint(kept.model_copy(update={"label": cell.recipe.label})) != fingerprint(cell.recipe):
        raise RunFolderError(
            explain(
                str(path),
                "a changed recipe for a run that is finished",
                "the recipe it was made with",
                "undo the change, choose another folder, or delete this arm's runs",
            )
        )


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
        "trial": cell.setting is not None,
    }


def _run_cell(cell: Mapping[str, Any], data_root: Path | None) -> None:
    """In a worker: one run on one thread, unless the recipe says otherwise."""
    recipe = recipe_from(cell["recipe"])
    torch.set_num_threads(recipe.threads or 1)
    start = None if cell["start"] is None else Path(cell["start"])
    try:
        if cell["trial"]:
            run_trial(recipe, cell["folder"], data_root=data_root)
        else:
            run_recipe(recipe, cell["folder"], data_root=data_root, start=start, arm=cell["arm"])
    except Interrupted as stop:
        # what a worker raises must survive the way to its parent, which has been told by the signal itself
        raise RunFolderError(str(stop)) from None
