"""A study goes into one file and comes out as it was; what is broken is named by its line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from qat_vsam.errors import InputError
from qat_vsam.report import Record, load_results, load_study, read_records, record_of, write_records
from qat_vsam.report.records import thinned


def study_of(folder: Path, out: Path) -> Path:
    """The run folders as a study folder with runs.jsonl."""
    out.mkdir()
    write_records(out / "runs.jsonl", [record_of(path.parent) for path in folder.rglob("result.json")])
    if (folder / "bench.json").exists():
        (out / "bench.json").write_text((folder / "bench.json").read_text())
    return out


def test_a_study_folder_reports_what_the_run_folders_do(comparison: Path, tmp_path: Path) -> None:
    folders, study = load_results(comparison), load_results(study_of(comparison, tmp_path / "study"))
    pd.testing.assert_frame_equal(folders.runs, study.runs)
    pd.testing.assert_frame_equal(folders.exports, study.exports)
    pd.testing.assert_frame_equal(folders.epochs, study.epochs)
    assert load_study(comparison).sentence == load_study(tmp_path / "study").sentence


def test_records_come_back_as_they_were_and_sorted_with_trials_last(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    runs = [record_of(make_run("w4a4", method, seed)) for method in ("sgd", "sam") for seed in (1, 0)]
    result = {"schema": 1, "validation_accuracy": 0.5, "diverged": True, "recipe_sha256": "ab"}
    settings = {"optimizer.rho": 0.1}
    trial = Record(arm="w4a4-a", seed=1000, trial="optimizer.rho=0.1", settings=settings, result=result)
    write_records(tmp_path / "runs.jsonl", [trial, *runs])
    back = read_records(tmp_path)
    assert [(record.arm, record.seed, record.trial) for record in back] == [
        ("w4a4-sam", 0, None),
        ("w4a4-sam", 1, None),
        ("w4a4-sgd", 0, None),
        ("w4a4-sgd", 1, None),
        ("w4a4-a", 1000, "optimizer.rho=0.1"),
    ]
    assert back == sorted([*runs, trial], key=lambda record: record.key)
    assert back[-1].recipe_sha256 == "ab"
    # the same records in another order are the same bytes, and nothing is left beside them
    before = (tmp_path / "runs.jsonl").read_bytes()
    write_records(tmp_path / "runs.jsonl", reversed(back))
    assert (tmp_path / "runs.jsonl").read_bytes() == before
    assert [path.name for path in tmp_path.glob("runs.jsonl*")] == ["runs.jsonl"]


def test_a_record_holds_every_epoch_and_at_most_thirty_steps_with_the_last(make_run: Callable[..., Path]) -> None:
    folder = make_run("w4a4", "vsam", 0)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "step"]
    record = record_of(folder)
    assert record.epochs == tuple(line for line in lines if line["kind"] == "epoch")
    assert len(steps) > len(record.steps) == 30
    assert record.steps[-1]["step"] == steps[-1]["step"]
    gaps = [b["step"] - a["step"] for a, b in zip(record.steps, record.steps[1:], strict=False)]
    assert max(gaps) <= 2 * min(gaps) + 9
    # JSON has no NaN, which the first step's PSF is
    assert "NaN" not in record.model_dump_json()


@pytest.mark.parametrize(("count", "expected"), [(2, [0, 1]), (3, [0, 1, 2]), (7, [2, 4, 6])])
def test_thinning_is_even_and_keeps_the_last(count: int, expected: list[int]) -> None:
    assert [line["i"] for line in thinned([{"i": i} for i in range(count)], most=3)] == expected


def test_a_trial_is_read_from_its_folder_when_told_which_it_is(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"schema": 1, "validation_accuracy": 0.4, "diverged": false}')
    record = record_of(tmp_path, arm="sgd", seed=1000, trial="optimizer.lr=0.1", settings={"optimizer.lr": 0.1})
    assert (record.key, record.epochs) == (("optimizer.lr=0.1", "sgd", 1000), ())
    with pytest.raises(InputError, match="pass arm= and seed="):
        record_of(tmp_path, trial="optimizer.lr=0.1")


@pytest.mark.parametrize("change", ["broken", "old", "impossible", "twice", "epoch"])
def test_a_broken_line_is_named_by_its_number(change: str, make_run: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    write_records(path, [record_of(make_run("w4a4", "sgd", seed)) for seed in (0, 1)])
    first, second = path.read_text().splitlines()
    content = json.loads(second)
    if change == "old":
        content["result"]["schema"] = 1
    if change == "impossible":
        content["result"]["accuracy"]["test"] = 97.0
    if change == "epoch":
        content["epochs"][3]["validation_accuracy"] = 2
    second = {"broken": second[:-9], "twice": first}.get(change, json.dumps(content))
    path.write_text(f"{first}\n{second}\n")
    with pytest.raises(InputError, match=r"runs.jsonl, line 2") as caught:
        load_results(tmp_path)
    expected = {
        "broken": "no JSON",
        "old": "options were not recorded",
        "impossible": "accuracy.test: got 97.0",
        "twice": "again, as in line 1",
        "epoch": "epochs 4: validation_accuracy: got 2",
    }
    assert expected[change] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_study_that_lacks_runs_says_which(make_run: Callable[..., Path], tmp_path: Path) -> None:
    write_records(tmp_path / "runs.jsonl", [record_of(make_run("w4a4", "sgd", 0))])
    (tmp_path / "comparison.yaml").write_text("seeds: 2\narms: {w4a4-sgd: {}, w4a4-sam: {}}\n")
    study = load_study(tmp_path)
    assert study.results.unfinished == ("w4a4-sgd/seed-1", "w4a4-sam/seed-0", "w4a4-sam/seed-1")
    assert any("3 runs are not finished" in line for line in study.warnings)
