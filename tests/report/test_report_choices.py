"""How settings were chosen is told with what is odd about it: ends of grids, unequal trials, runs that diverged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qat_vsam.errors import InputError
from qat_vsam.report import build_report, load_results
from qat_vsam.report.formats import DASH

TUNED = """
seeds: [1000, 1001]
arms:
  w4a4-sgd:
    grid: {optimizer.lr: [0.1, 0.2, 0.4], optimizer.nesterov: [true]}
    trials:
    - {settings: {optimizer.lr: 0.1, optimizer.nesterov: true}, validation_accuracy: 0.95}
    - {settings: {optimizer.lr: 0.2, optimizer.nesterov: true}, validation_accuracy: 0.9625}
    - {settings: {optimizer.lr: 0.4, optimizer.nesterov: true}, validation_accuracy: 0.0, diverged: 2}
    chosen: {optimizer.lr: 0.2, optimizer.nesterov: true}
  w4a4-sam:
    grid: {optimizer.rho: [0.1, 0.2, 0.4]}
    trials:
    - {settings: {optimizer.rho: 0.1}, validation_accuracy: 0.95}
    - {settings: {optimizer.rho: 0.2}, validation_accuracy: 0.96}
    - {settings: {optimizer.rho: 0.4}, validation_accuracy: 0.97}
    chosen: {optimizer.rho: 0.4}
  w4a4-split_sgd: {same_as: w4a4-sgd, chosen: {optimizer.lr: 0.2}}
"""


@pytest.fixture
def tuned(make_comparison: Callable[..., Path]) -> Callable[[str], Path]:
    """A comparison with that `tuned.yaml`, and a trial's result that no table may count as a run."""

    def write(text: str) -> Path:
        folder = make_comparison(seeds=2, arms=[("w4a4", method) for method in ("sgd", "split_sgd", "sam")])
        (folder / "tuned.yaml").write_text(text)
        trial = folder / "tune" / "w4a4-sgd" / "optimizer.lr=0.1" / "seed-1000"
        trial.mkdir(parents=True)
        (trial / "result.json").write_text('{"validation_accuracy": 0.95, "diverged": false}')
        return folder

    return write


def summary(folder: Path, out: Path) -> str:
    return (build_report(folder, out, title="tuned").parent / "summary.md").read_text()


def rows_of(text: str, heading: str) -> dict[str, list[str]]:
    section = text.split(f"## {heading}")[1].split("##")[0]
    lines = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
    return {cells[0]: [cell.strip() for cell in cells[1:]] for cells in lines[2:]}


def test_the_choice_of_every_arm_is_told_and_the_end_of_a_grid_is_flagged(
    tuned: Callable[[str], Path], tmp_path: Path
) -> None:
    rows = rows_of(summary(tuned(TUNED), tmp_path / "out"), "How settings were chosen")
    assert rows["W4A4 SGD"][0] == "3 2 seeds each 2 runs diverged"
    assert rows["W4A4 SGD"][2:] == ["optimizer.lr 0.2 optimizer.nesterov True", "96.25", DASH]
    assert rows["W4A4 SAM"][1:] == ["optimizer.rho: 0.1, 0.2, 0.4", "optimizer.rho 0.4", "97.00", "optimizer.rho"]
    assert rows["W4A4 SGD, split batch"][0] == f"{DASH} as W4A4 SGD"


@pytest.mark.parametrize(
    ("dropped", "expected"),
    [
        ("", "Equal numbers of trials: each of the 2 tuned arms had 3"),
        (
            "    - {settings: {optimizer.rho: 0.1}, validation_accuracy: 0.95}\n",
            "UNEQUAL numbers of trials, which favours the arms that had more: 2 for w4a4-sam; 3 for w4a4-sgd.",
        ),
    ],
)
def test_unequal_numbers_of_trials_are_said_plainly(
    dropped: str, expected: str, tuned: Callable[[str], Path], tmp_path: Path
) -> None:
    assert expected in summary(tuned(TUNED.replace(dropped, "")), tmp_path / "out")


def test_a_grid_tried_over_the_choice_of_another_arm_names_it(tuned: Callable[[str], Path], tmp_path: Path) -> None:
    own = "    chosen: {optimizer.rho: 0.4}\n"
    text = TUNED.replace(own, "    same_as: w4a4-sgd\n    chosen: {optimizer.lr: 0.2, optimizer.rho: 0.4}\n")
    written = summary(tuned(text), tmp_path / "out")
    row = rows_of(written, "How settings were chosen")["W4A4 SAM"]
    assert row[0] == "3 2 seeds each over what was chosen for W4A4 SGD"
    assert row[2:] == ["optimizer.lr 0.2 optimizer.rho 0.4", "97.00", "optimizer.rho"]
    assert "Equal numbers of trials: each of the 2 tuned arms had 3" in written


def test_trials_are_no_runs_of_the_comparison(tuned: Callable[[str], Path]) -> None:
    results = load_results(tuned(TUNED))
    assert len(results.runs) == 6
    assert not results.unfinished


def test_a_comparison_without_trials_has_no_such_table(comparison: Path, tmp_path: Path) -> None:
    assert "How settings were chosen" not in summary(comparison, tmp_path / "out")


def test_a_broken_file_of_choices_is_named(tuned: Callable[[str], Any]) -> None:
    with pytest.raises(InputError, match=r"tuned.yaml: arms.w4a4-sgd.chosen"):
        load_results(tuned("seeds: [1000]\narms: {w4a4-sgd: {}}\n"))
