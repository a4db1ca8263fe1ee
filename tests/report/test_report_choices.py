"""How settings were chosen is told with what is odd about it: ends of grids, unequal trials, runs that diverged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qat_vsam.errors import InputError
from qat_vsam.report import Record, load_results, load_study, record_of, write_records
from qat_vsam.report.choices import Choice

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
        folder = make_comparison(seeds=2, arms=[("w4a4", method) for method in ("sgd", "split_sgd", "sam", "vsam")])
        (folder / "tuned.yaml").write_text(text)
        trial = folder / "tune" / "w4a4-sgd" / "optimizer.lr=0.1" / "seed-1000"
        trial.mkdir(parents=True)
        (trial / "result.json").write_text('{"validation_accuracy": 0.95, "diverged": false}')
        return folder

    return write


def choices_of(folder: Path) -> dict[str, Choice]:
    return {choice.arm: choice for choice in load_results(folder).choices}


def test_the_choice_of_every_arm_is_told_and_the_end_of_a_grid_is_flagged(tuned: Callable[[str], Path]) -> None:
    choices = choices_of(tuned(TUNED))
    sgd, sam, split = (choices[f"w4a4-{name}"] for name in ("sgd", "sam", "split_sgd"))
    assert (sgd.trials, sgd.seeds, sgd.diverged, sgd.validation_accuracy, sgd.at_end) == (3, 2, 2, 0.9625, ())
    assert (sam.chosen, sam.validation_accuracy, sam.at_end) == ({"optimizer.rho": 0.4}, 0.97, ("optimizer.rho",))
    assert (split.same_as, split.trials, split.validation_accuracy, split.at_end) == ("w4a4-sgd", 0, None, ())


OVER = TUNED.replace(
    "    chosen: {optimizer.rho: 0.4}\n",
    "    same_as: w4a4-sgd\n    chosen: {optimizer.lr: 0.2, optimizer.nesterov: true, optimizer.rho: 0.4}\n",
)
ONE_TRIAL = "    - {settings: {optimizer.rho: 0.1}, validation_accuracy: 0.95}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            TUNED,
            (
                "Arms with a grid of their own had equal numbers of settings to choose from: 3 each of 2.",
                "No grid of their own, settings as chosen for another arm: w4a4-split_sgd as w4a4-sgd.",
                "No trials at all, settings as the recipe says them: w4a4-vsam.",
                "The arms do NOT share a grid of the learning rate: "
                "0.1, 0.2, 0.4 for w4a4-sgd, w4a4-split_sgd; none for w4a4-vsam, w4a4-sam.",
                "The weight decay was tried for no arm.",
            ),
        ),
        (
            OVER,
            (
                "Tried on top of what trials had chosen for another arm, and so with more of them: "
                "w4a4-sam over w4a4-sgd.",
                "0.1, 0.2, 0.4 for w4a4-sgd, w4a4-split_sgd, w4a4-sam; none for w4a4-vsam.",
            ),
        ),
        (
            OVER + "  w4a4-vsam: {same_as: w4a4-sgd, chosen: {optimizer.lr: 0.2, optimizer.nesterov: true}}\n",
            ("All arms share the grid of the learning rate.",),
        ),
        (
            TUNED.replace(ONE_TRIAL, ""),
            ("UNEQUAL numbers of trials, which favours the arms that had more: 2 for w4a4-sam; 3 for w4a4-sgd.",),
        ),
    ],
)
def test_whether_the_arms_had_the_same_chances_is_said_plainly(
    text: str, said: tuple[str, ...], tuned: Callable[[str], Path]
) -> None:
    fairness = load_study(tuned(text)).fairness
    for sentence in said:
        assert sentence in fairness, fairness


def test_the_trials_are_a_row_each_with_the_chosen_one_marked(tuned: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tuned(TUNED)
    means = load_study(folder).trials
    assert list(means.columns) == [
        "arm",
        "optimizer.lr",
        "optimizer.nesterov",
        "optimizer.rho",
        "seed",
        "validation_accuracy",
        "diverged",
        "chosen",
        "at_edge",
    ]
    assert means["seed"].isna().all()
    assert means["chosen"].tolist() == [False, True, False, False, False, True]
    assert means["at_edge"].tolist() == ["", "", "", "", "", "optimizer.rho"]
    assert means["diverged"].tolist() == [False, False, True, False, False, False]
    # with the trials' own results, a row a run
    study = tmp_path / "study"
    study.mkdir()
    (study / "tuned.yaml").write_text(TUNED)
    trials = [
        Record(
            arm="w4a4-sam",
            seed=seed,
            trial=f"optimizer.rho={rho}",
            settings={"optimizer.rho": rho},
            result={"validation_accuracy": rho, "diverged": rho == 0.1},
        )
        for rho in (0.1, 0.4)
        for seed in (1000, 1001)
    ]
    runs = [record_of(path.parent) for path in folder.glob("w4a4-*/*/result.json")]
    write_records(study / "runs.jsonl", [*runs, *trials])
    told = load_study(study).trials
    own = told[told["arm"] == "w4a4-sam"]
    assert own["seed"].tolist() == [1000, 1001, 1000, 1001]
    assert own["validation_accuracy"].tolist() == [0.1, 0.1, 0.4, 0.4]
    assert own["chosen"].tolist() == [False, False, True, True]
    assert own["diverged"].tolist() == [True, True, False, False]
    assert len(told) == 4 + 3


def test_trials_are_no_runs_of_the_comparison(tuned: Callable[[str], Path]) -> None:
    results = load_results(tuned(TUNED))
    assert len(results.runs) == 8
    assert not results.unfinished


def test_a_comparison_without_trials_says_nothing_of_them(comparison: Path) -> None:
    study = load_study(comparison)
    assert (study.fairness, study.choices) == ("", ())
    assert study.trials.empty


def test_a_broken_file_of_choices_is_named(tuned: Callable[[str], Any]) -> None:
    with pytest.raises(InputError, match=r"tuned.yaml: arms.w4a4-sgd.chosen"):
        load_results(tuned("seeds: [1000]\narms: {w4a4-sgd: {}}\n"))
