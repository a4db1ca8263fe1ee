"""The grid job: settings chosen by trials, every arm with every seed, a step-time bench of the arms, and the report.

Each run is a process's work in a folder of its own, so the grid skips what is finished and goes on with what
was stopped; the same command ends what a kill interrupted. A study folder keeps what is finished in a few files, for
another machine to go on from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from qat_vsam.config import Comparison, Recipe, dump_yaml, fingerprint
from qat_vsam.errors import RunFolderError, explain
from qat_vsam.recipes import assemble
from qat_vsam.recipes.benchmark import bench_arms
from qat_vsam.recipes.cell import Cell
from qat_vsam.recipes.events import Listener
from qat_vsam.recipes.pool import run_cells
from qat_vsam.recipes.resolve import resolve
from qat_vsam.recipes.result import RESULT, WEIGHTS
from qat_vsam.recipes.study import StudyFolder
from qat_vsam.recipes.tuning import Tuning
from qat_vsam.report import build_report
from qat_vsam.train import write_atomic

BENCH = "bench.json"


def compare(
    comparison: Comparison,
    folder: str | Path,
    *,
    study: str | Path | None = None,
    data_root: Path | None = None,
    listener: Listener | None = None,
    command: str = "",
) -> Path:
    """Run what is missing of the trials and of the grid, time the arms, write the report.

    Args:
        comparison: arms, seeds, and the recipe that they change.
        folder: runs go to `folder/ARM/seed-K`, trials to `folder/tune`, and without a study what they decide to
            `folder/tuned.yaml`, the report to `folder/report`.
        study: a folder to keep what is finished in, with choices, step times and report: runs and trials that stand in
            its `runs.jsonl` are not made again, whatever machine made them. A run whose weights another arm starts from
            is made again where the weights are not at hand.
        data_root: see `assemble.data_root`.
        listener: hears which runs are done.
        command: what repeats this, for the runs and the report; "": what the comparison says.

    Returns:
        The report's `index.html`.

    Raises:
        InputError: an arm cannot be; nothing has been trained.
        RunFolderError: a run belongs to another recipe, a worker died, or another comparison holds the study.
    """
    listener = listener or Listener()
    folder = Path(folder)
    comparison = comparison.model_copy(update={"command": command or comparison.command})
    for recipe in _first_recipes(comparison):
        assemble.check_names(recipe)
        resolve(recipe)
    with nullcontext() if study is None else StudyFolder(study) as opened:
        home = folder if opened is None else opened.path
        folder.mkdir(parents=True, exist_ok=True)
        work = _Work(comparison, folder, listener, opened)
        command = comparison.command
        run_cells(work.known, work.total, comparison.workers, data_root, listener, command=command, keep=work.keep)
        bench = home / BENCH
        _keep_bench(bench, work.arms(), comparison, data_root, listener)
        return build_report(
            home,
            folder / "report" if opened is None else home,
            title=comparison.title,
            bench=bench if bench.exists() else None,
            command=command,
            description=comparison.description,
            notes=comparison.notes,
        )


def _first_recipes(comparison: Comparison) -> Iterator[Recipe]:
    """A recipe of each arm as written, and of each setting to try."""
    yield from (comparison.arm(arm, 0) for arm in comparison.arms)
    if tune := comparison.tune:
        for arm in tune.grids:
            yield from (comparison.arm(arm, 0, settings) for settings in tune.settings(arm))


def _keep_bench(
    path: Path, arms: Mapping[str, Recipe], comparison: Comparison, data_root: Path | None, listener: Listener
) -> None:
    """Time the arms, unless that was done for these very recipes."""
    section = comparison.bench
    if section is None:
        return
    timed = {arm: fingerprint(recipe) for arm, recipe in arms.items()} | {"bench": fingerprint(section)}
    if path.exists():
        try:
            kept = json.loads(path.read_text())
        except ValueError:
            advice = "delete it, and the arms are timed again"
            raise RunFolderError(explain(str(path), "a file that was changed or cut", "step times", advice)) from None
        if isinstance(kept, dict) and kept.get("timed") == timed:
            return
    listener.say("timing the arms, step by step in turn")
    measured = bench_arms(arms, section, data_root)
    write_atomic(path, (json.dumps(measured | {"timed": timed}, indent=2) + "\n").encode())


def grid(
    comparison: Comparison,
    folder: Path,
    chosen: Mapping[str, Mapping[str, Any]] | None = None,
    study: StudyFolder | None = None,
) -> Iterator[Cell]:
    """The cells that count, seed by seed.

    Args:
        comparison: arms and seeds.
        folder: of the comparison.
        chosen: arm -> settings to put over it, for the arms wanted; None: all arms as they are written.
        study: where runs may be finished already.
    """
    arms = {arm: {} for arm in comparison.arms} if chosen is None else chosen
    followers = _followers(comparison) if study is not None and arms else {}
    for seed in range(comparison.seeds):
        for arm, settings in arms.items():
            recipe = resolve(comparison.arm(arm, seed, settings))
            place = folder / arm / f"seed-{seed}"
            start = None
            if recipe.init_from is not None:
                start = folder / recipe.init_from / f"seed-{seed}" / WEIGHTS
            wanted = any(not _is_finished(other, seed, folder, study) for other in followers.get(arm, ()))
            again = wanted and not (place / WEIGHTS).is_file() and _is_finished(arm, seed, folder, study)
            yield Cell(arm, seed, recipe, place, start, study=study, again=again)


def _followers(comparison: Comparison) -> dict[str, list[str]]:
    """Arm -> the arms that start from its weights."""
    found: dict[str, list[str]] = {}
    for arm in comparison.arms:
        source = comparison.arm(arm, 0).init_from
        if source is not None:
            found.setdefault(source, []).append(arm)
    return found


def _is_finished(arm: str, seed: int, folder: Path, study: StudyFolder | None) -> bool:
    known = study is not None and study.result(arm, seed) is not None
    return known or (folder / arm / f"seed-{seed}" / RESULT).is_file()


class _Work:
    """A comparison's cells, handed out as they become known: an arm's runs wait for its trials."""

    def __init__(self, comparison: Comparison, folder: Path, listener: Listener, study: StudyFolder | None) -> None:
        self._comparison = comparison
        self._folder = folder
        self._listener = listener
        self._study = study
        self._tuning = Tuning(comparison, folder, study)
        self._open = list(comparison.arms)
        self._described = False
        self.total = self._tuning.total + len(comparison.arms) * comparison.seeds

    def known(self) -> list[Cell]:
        """The cells that became known since the last call."""
        # trials handed out before are by now run, or found to be of today's recipe
        self._tuning.settle(self._listener)
        trials = self._tuning.known()
        found = {arm: self._tuning.settings(arm) for arm in self._open}
        chosen = {arm: settings for arm, settings in found.items() if settings is not None}
        self._open = [arm for arm in self._open if arm not in chosen]
        runs = list(grid(self._comparison, self._folder, chosen, self._study))
        for arm in dict.fromkeys(cell.arm for cell in runs if cell.again):
            self._listener.say(
                f"{arm}: made again, for other arms start from its weights, which the study does not hold"
            )
        return [*trials, *runs]

    def keep(self, finished: Sequence[Cell]) -> None:
        """Take over what is finished and not in the study yet, and what was made again.

        It is called first when what had been finished before is found to be of today's recipes. Before that the file of
        the comparison is left alone: one that is refused must not stand beside the runs of another.
        """
        if not self._described:
            home = self._folder if self._study is None else self._study.path
            write_atomic(home / "comparison.yaml", dump_yaml(self._comparison).encode())
            self._described = True
        if self._study is not None:
            self._study.add(cell for cell in finished if cell.again or cell.recorded is None)

    def arms(self) -> dict[str, Recipe]:
        """The recipe of each arm's first seed, once every choice is made."""
        return {arm: resolve(self._comparison.arm(arm, 0, self._tuning.settings(arm))) for arm in self._comparison.arms}
