"""The grid job: settings chosen by trials, every arm with every seed, a step-time bench of the arms, and the report.

Each run is a process's work in a folder of its own, so the grid skips what is finished and goes on with what
was stopped; the same command ends what a kill interrupted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qat_vsam.config import Comparison, Recipe, dump_yaml, fingerprint
from qat_vsam.recipes import assemble
from qat_vsam.recipes.benchmark import bench_arms
from qat_vsam.recipes.events import Listener
from qat_vsam.recipes.pool import Cell, run_cells
from qat_vsam.recipes.train import WEIGHTS
from qat_vsam.recipes.tuning import Tuning
from qat_vsam.report import build_report
from qat_vsam.train import write_atomic


def compare(
    comparison: Comparison,
    folder: str | Path,
    *,
    data_root: Path | None = None,
    listener: Listener | None = None,
    command: str = "",
) -> Path:
    """Run what is missing of the trials and of the grid, time the arms, write the report.

    Args:
        comparison: arms, seeds, and the recipe that they change.
        folder: runs go to `folder/ARM/seed-K`, trials to `folder/tune`, what they decide to `folder/tuned.yaml`, the
            report to `folder/report`.
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
    work = _Work(comparison, folder, listener)
    for recipe in work.first_recipes():
        assemble.check_names(recipe)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "comparison.yaml", dump_yaml(comparison).encode())
    run_cells(work.known, work.total, comparison.workers, data_root, listener)
    bench = folder / "bench.json"
    _keep_bench(bench, work.arms(), comparison, data_root, listener)
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
    path: Path, arms: Mapping[str, Recipe], comparison: Comparison, data_root: Path | None, listener: Listener
) -> None:
    """Time the arms, unless that was done for these very recipes."""
    section = comparison.bench
    if section is None:
        return
    timed = {arm: fingerprint(recipe) for arm, recipe in arms.items()} | {"bench": fingerprint(section)}
    if path.exists() and json.loads(path.read_text()).get("timed") == timed:
        return
    listener.say("timing the arms, step by step in turn")
    measured = bench_arms(arms, section, data_root, roles=comparison.roles)
    write_atomic(path, json.dumps(measured | {"timed": timed}, indent=2).encode())


def grid(comparison: Comparison, folder: Path, chosen: Mapping[str, Mapping[str, Any]] | None = None) -> Iterator[Cell]:
    """The cells that count, seed by seed.

    Args:
        comparison: arms and seeds.
        folder: of the comparison.
        chosen: arm -> settings to put over it, for the arms wanted; None: all arms as they are written.
    """
    arms = {arm: {} for arm in comparison.arms} if chosen is None else chosen
    for seed in range(comparison.seeds):
        for arm, settings in arms.items():
            recipe = comparison.arm(arm, seed, settings)
            start = None
            if recipe.init_from is not None:
                start = folder / recipe.init_from / f"seed-{seed}" / WEIGHTS
            yield Cell(arm, seed, recipe, folder / arm / f"seed-{seed}", start)


class _Work:
    """A comparison's cells, handed out as they become known: an arm's runs wait for its trials."""

    def __init__(self, comparison: Comparison, folder: Path, listener: Listener) -> None:
        self._comparison = comparison
        self._folder = folder
        self._listener = listener
        self._tuning = Tuning(comparison, folder)
        self._open = list(comparison.arms)
        self.total = self._tuning.total + len(comparison.arms) * comparison.seeds

    def first_recipes(self) -> Iterator[Recipe]:
        """A recipe of each arm as written, and of each setting to try."""
        yield from (self._comparison.arm(arm, 0) for arm in self._comparison.arms)
        if tune := self._comparison.tune:
            for arm in tune.grids:
                yield from (self._comparison.arm(arm, 0, settings) for settings in tune.settings(arm))

    def known(self) -> list[Cell]:
        """The cells that became known since the last call."""
        # trials handed out before are by now run, or found to be of today's recipe
        self._tuning.settle(self._listener)
        trials = self._tuning.known()
        found = {arm: self._tuning.settings(arm) for arm in self._open}
        chosen = {arm: settings for arm, settings in found.items() if settings is not None}
        self._open = [arm for arm in self._open if arm not in chosen]
        return [*trials, *grid(self._comparison, self._folder, chosen)]

    def arms(self) -> dict[str, Recipe]:
        """The recipe of each arm's first seed, once every choice is made."""
        return {arm: self._comparison.arm(arm, 0, self._tuning.settings(arm)) for arm in self._comparison.arms}
