"""Promises of the study folder: a comparison goes on from a few files, on any machine, and counts no other recipe's."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qat_vsam import config
from qat_vsam.errors import RunFolderError
from qat_vsam.recipes import Listener, compare, resolve, run_recipe
from qat_vsam.recipes.cell import Cell, check_unchanged
from qat_vsam.recipes.compare import grid
from qat_vsam.recipes.study import StudyFolder

Call = Callable[..., tuple[int, str, str]]

GRID = """
name: grid
title: A small grid
question: Does it go on?
seeds: 1
workers: 1
recipe:
  model: {name: digits_cnn, options: {width: 4}}
  data: {name: digits, train_size: 100, validation_size: 100, batch_size: 20}
  optimizer: {name: sgd, lr: 0.05}
  train: {epochs: 1}
arms:
  float32-sgd: {}
  after: {init_from: float32-sgd, quant: {bits: w4a4, calibration_images: 100}, train: {epochs: 0}}
tune:
  seeds: 1
  grids: {float32-sgd: {optimizer.lr: [1e-6, 0.1]}}
bench: null
"""


class Heard(Listener):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def comparison(tmp_path: Path, *changes: str) -> config.Comparison:
    path = tmp_path / "grid.yaml"
    path.write_text(GRID)
    return config.load_comparison(path, changes)


def lines_of(study: Path) -> dict[tuple[str, int, str | None], str]:
    lines = (study / "runs.jsonl").read_text().splitlines()
    found = {}
    for line in lines:
        content = json.loads(line)
        found[content["arm"], content["seed"], content["trial"]] = line
    assert len(found) == len(lines)
    return found


def made(folder: Path) -> set[str]:
    """The runs that lie in a folder."""
    return {str(path.parent.relative_to(folder)) for path in folder.rglob("result.json")}


@pytest.mark.timeout(600)
def test_a_study_goes_on_on_another_machine_from_its_files_alone(tmp_path: Path) -> None:
    study = tmp_path / "study"
    page = compare(comparison(tmp_path), tmp_path / "first", study=study, command="qat-vsam compare grid.yaml")
    assert page == study / "index.html"
    first = lines_of(study)
    trials = [("float32-sgd", 1000, f"optimizer.lr={lr}") for lr in ("1e-06", "0.1")]
    assert set(first) == {("float32-sgd", 0, None), ("after", 0, None), *trials}
    assert json.loads(first[trials[1]])["settings"] == {"optimizer.lr": 0.1}
    assert "test" not in first[trials[1]]
    tuned = (study / "tuned.yaml").read_bytes()
    assert config.read_recipe_file(study / "comparison.yaml")["command"] == "qat-vsam compare grid.yaml"
    assert not (tmp_path / "first" / "tuned.yaml").exists()
    assert not (tmp_path / "first" / "report").exists()

    # elsewhere, with one seed more: neither trials nor the runs of the first seed are made again
    compare(comparison(tmp_path, "seeds=2"), tmp_path / "second", study=study)
    assert made(tmp_path / "second") == {"float32-sgd/seed-1", "after/seed-1"}
    second = lines_of(study)
    assert {key: second[key] for key in first} == first
    assert (study / "tuned.yaml").read_bytes() == tuned

    # elsewhere again, where an arm is missing whose start lies on the second machine
    kept = [line for key, line in second.items() if key != ("after", 1, None)]
    (study / "runs.jsonl").write_text("".join(f"{line}\n" for line in kept))
    heard = Heard()
    compare(comparison(tmp_path, "seeds=2"), tmp_path / "third", study=study, listener=heard)
    assert made(tmp_path / "third") == {"float32-sgd/seed-1", "after/seed-1"}
    assert any("float32-sgd: made again" in line for line in heard.lines)
    third = lines_of(study)
    assert set(third) == set(second)
    accuracies = [json.loads(lines["after", 1, None])["result"]["accuracy"] for lines in (second, third)]
    assert accuracies[0] == accuracies[1]


def run_of_an_arm(tmp_path: Path, *changes: str) -> tuple[Cell, config.Comparison]:
    """An arm's run of the first seed, finished in its folder."""
    one = plain(tmp_path, *changes)
    (cell,) = grid(one, tmp_path / "runs")
    run_recipe(cell.recipe, cell.folder, arm=cell.arm)
    return cell, one


def plain(tmp_path: Path, *changes: str) -> config.Comparison:
    path = tmp_path / "plain.yaml"
    content: dict[str, Any] = {**config.read_yaml(GRID, "grid"), "tune": None, "arms": {"float32-sgd": {}}}
    path.write_text(config.dump_yaml(config.Comparison.model_validate(content)))
    return config.load_comparison(path, changes)


def test_a_run_that_is_finished_in_its_folder_joins_the_study(tmp_path: Path) -> None:
    _, one = run_of_an_arm(tmp_path)
    compare(one, tmp_path / "runs", study=tmp_path / "study")
    assert set(lines_of(tmp_path / "study")) == {("float32-sgd", 0, None)}


def test_a_run_of_another_recipe_is_refused_with_the_difference(tmp_path: Path) -> None:
    cell, _ = run_of_an_arm(tmp_path)
    study = tmp_path / "study"
    with StudyFolder(study) as opened:
        opened.add([cell])
    with pytest.raises(RunFolderError, match=r"(?s)float32-sgd seed 0 in .*optimizer.lr: 0.05 then, 0.1 now"):
        compare(plain(tmp_path, "recipe.optimizer.lr=0.1"), tmp_path / "new", study=study)
    with pytest.raises(RunFolderError, match=r"data\.label_noise: 0.0 then, 0.2 now"):
        compare(plain(tmp_path, "recipe.data.label_noise=0.2"), tmp_path / "new", study=study)
    assert made(tmp_path / "new") == set()
    assert not (study / "comparison.yaml").exists()
    # a label is no part of what ran
    compare(plain(tmp_path, "arms.float32-sgd.label=SGD"), tmp_path / "new", study=study)
    assert made(tmp_path / "new") == set()


def test_a_run_folder_whose_options_were_not_recorded_is_refused(tmp_path: Path) -> None:
    cell, _ = run_of_an_arm(tmp_path)
    path = cell.folder / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 1}))
    with pytest.raises(RunFolderError, match="its optimizer's options were not recorded"):
        check_unchanged(cell)


def test_two_comparisons_on_one_study_at_once_are_refused(tmp_path: Path) -> None:
    study = tmp_path / "study"
    hold = (
        "import sys; from qat_vsam.recipes.study import StudyFolder;"
        "study = StudyFolder(sys.argv[1]); print(flush=True); input()"
    )
    command = [sys.executable, "-c", hold, str(study)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(RunFolderError, match="a study that another comparison holds"):
            compare(plain(tmp_path), tmp_path / "runs", study=study)
        process.kill()
    with StudyFolder(study):
        assert list(study.iterdir()) == []


def test_a_disk_that_refuses_leaves_the_study_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell, one = run_of_an_arm(tmp_path)
    with StudyFolder(tmp_path / "study") as study:
        study.add([cell])
        before = (study.path / "runs.jsonl").read_bytes()

        def refuse(*arguments: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.replace", refuse)
        with pytest.raises(RunFolderError, match="free some space"):
            study.add([Cell(cell.arm, 1, resolve(one.arm(cell.arm, 1)), cell.folder)])
        assert (study.path / "runs.jsonl").read_bytes() == before


def test_weights_that_a_finished_run_has_lost_are_named(tmp_path: Path) -> None:
    one = comparison(tmp_path, "tune=null")
    source, _ = grid(one, tmp_path / "runs")
    run_recipe(source.recipe, source.folder, arm=source.arm)
    (source.folder / "weights.pt").unlink()
    with pytest.raises(RunFolderError, match=r"after seed 0: got no .*weights\.pt; .*delete the folder"):
        compare(one, tmp_path / "runs")


def test_the_command_line_keeps_a_study_ends_with_its_answer_and_rebuilds_it(
    command_line: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_of_an_arm(tmp_path)
    code, out, err = command_line("compare", "plain.yaml", "--out", "runs", "--study", "study")
    assert code == 0, err
    assert "Does it go on?" in out
    assert out.rstrip().endswith("report: study/index.html")
    page = tmp_path / "study" / "index.html"
    before = page.read_bytes()
    for arguments in (("report", "study"), ("report", "--all", ".")):
        page.unlink()
        code, _, err = command_line(*arguments)
        assert code == 0, err
        # rebuilt with all others it links the page that lists them
        linked = b"All studies" in page.read_bytes()
        assert linked == ("--all" in arguments)
        assert linked or page.read_bytes() == before
    assert command_line("report", "study", "--out", "elsewhere", "--title", "Another title")[0] == 0
    assert "Another title" in (tmp_path / "elsewhere" / "index.html").read_text()
    for arguments, expected in (
        (("report",), "name folders, or write --all reports"),
        (("report", "study", "--all", "."), "got folders and --all"),
        (("report", "runs"), "give --out FOLDER"),
    ):
        code, _, err = command_line(*arguments)
        assert code == 2
        assert expected in err
