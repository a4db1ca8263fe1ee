"""A run folder belongs to one process and one recipe, and says clearly what is wrong."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import subprocess
import sys

import pytest
import torch

from qat_vsam.errors import CheckpointError, RunFolderError
from qat_vsam.quant import QuantSpec, calibrate, prepare, set_compiled
from qat_vsam.train import RunFolder, describe_environment, fit, load_trained, write_atomic

RECIPE = "".join(f"option_{number}: {number}\n" for number in range(40))


def test_the_second_process_in_a_folder_is_refused_and_told_the_first_ones_number(tmp_path):
    with RunFolder(tmp_path), pytest.raises(RunFolderError, match=f"process {os.getpid()} "):
        RunFolder(tmp_path)
    RunFolder(tmp_path).close()


def test_another_process_holds_the_folder_until_it_is_killed(tmp_path):
    hold = (
        "import fcntl, os, sys; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX);"
        "print(os.getpid(), file=file, flush=True); print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", hold, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        with pytest.raises(RunFolderError, match=f"process {process.pid} "):
            RunFolder(tmp_path)
        process.kill()
    RunFolder(tmp_path).close()


def begin(folder):
    """Open the folder and write a step."""
    with RunFolder(folder, RECIPE) as run:
        run.log({"kind": "step", "step": 1}, timing={})


def test_a_recipe_may_change_until_a_step_or_a_measurement_is_written(tmp_path):
    with RunFolder(tmp_path, "name: mistaken") as run:
        run.record_environment({"threads": 99})
    with RunFolder(tmp_path, RECIPE):
        assert (tmp_path / "recipe.yaml").read_text() == RECIPE
        assert not (tmp_path / "environment.json").exists()
    (tmp_path / "baseline.json").write_text("{}")
    with pytest.raises(RunFolderError, match="a changed recipe"):
        RunFolder(tmp_path, "name: another")


def test_a_changed_recipe_is_refused_with_the_difference(tmp_path):
    begin(tmp_path)
    RunFolder(tmp_path, RECIPE).close()
    changed = RECIPE.replace("option_7: 7", "option_7: 8")
    with pytest.raises(RunFolderError, match=r"-option_7: 7\n.*option_7: 8") as refused:
        RunFolder(tmp_path, changed)
    assert "option_20" not in str(refused.value)
    assert (tmp_path / "recipe.yaml").read_text() == RECIPE
    RunFolder(tmp_path, RECIPE).close()


def test_the_difference_of_two_unlike_recipes_is_cut_short(tmp_path):
    begin(tmp_path)
    with pytest.raises(RunFolderError, match=r"\.\.\. \d+ more lines") as refused:
        RunFolder(tmp_path, RECIPE.replace("option", "choice"))
    assert len(str(refused.value).splitlines()) < 25


def test_a_run_is_finished_when_its_result_is_there(tmp_path):
    with RunFolder(tmp_path, RECIPE) as run:
        assert not run.finished
        run.write_result({"schema": 1, "accuracy": {"test": 0.5}})
    with RunFolder(tmp_path, RECIPE) as run:
        assert run.finished
    assert json.loads((tmp_path / "result.json").read_text())["accuracy"] == {"test": 0.5}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_disk_that_refuses_the_result_leaves_what_was_there(tmp_path, monkeypatch, code):
    def refuse(*arguments):
        raise OSError(code, os.strerror(code))

    with RunFolder(tmp_path, RECIPE) as run:
        with monkeypatch.context() as disk:
            disk.setattr(os, "fsync", refuse)
            with pytest.raises(RunFolderError, match=errno.errorcode[code]):
                run.write_result({"schema": 1})
        assert not run.finished
        run.write_result({"schema": 1})
        monkeypatch.setattr(os, "fsync", refuse)
        with pytest.raises(RunFolderError, match=errno.errorcode[code]):
            run.write_result({"schema": 2})
        assert json.loads((tmp_path / "result.json").read_text()) == {"schema": 1}


def test_a_path_that_cannot_be_a_folder_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"file/run: got .*; expected .*; check"):
        RunFolder(tmp_path / "file" / "run")


def test_logs_are_cut_back_to_the_checkpoint(tmp_path):
    with RunFolder(tmp_path) as run:
        run.log({"kind": "step", "step": 1}, timing={"train_seconds": 0.1})
        run.save(0, 1, {"weights": torch.ones(2)})
        run.log({"kind": "step", "step": 2}, timing={"train_seconds": 0.2})
    with (tmp_path / "metrics.jsonl").open("a") as log:
        log.write('{"kind": "st')
    with RunFolder(tmp_path) as run:
        assert list(run.restore()) == ["weights"]
    assert (tmp_path / "metrics.jsonl").read_text() == '{"kind": "step", "step": 1}\n'
    assert (tmp_path / "timing.jsonl").read_text() == '{"kind": "step", "step": 1, "train_seconds": 0.1}\n'


def test_without_a_checkpoint_the_logs_begin_anew(tmp_path):
    with RunFolder(tmp_path) as run:
        run.log({"kind": "step", "step": 1}, timing={})
        assert run.restore() is None
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_a_log_that_lost_lines_is_refused(tmp_path):
    with RunFolder(tmp_path) as run:
        run.log({"kind": "step", "step": 1}, timing={})
        run.save(0, 1, {})
    (tmp_path / "metrics.jsonl").write_bytes(b"")
    with RunFolder(tmp_path) as run, pytest.raises(RunFolderError, match=r"metrics\.jsonl: got 0 bytes"):
        run.restore()


def test_the_environment_of_the_start_stays_and_another_one_is_added_with_a_warning(tmp_path, caplog):
    here = describe_environment(torch.device("cpu"))
    with RunFolder(tmp_path) as run:
        run.record_environment(here)
        run.record_environment(here)
        assert not caplog.records
        run.record_environment(here | {"threads": 99})
        run.record_environment(here | {"threads": 99})
    assert caplog.text.count("threads") == 1
    written = json.loads((tmp_path / "environment.json").read_text())
    assert written["versions"]["torch"] == importlib.metadata.version("torch")
    assert written["threads"] == here["threads"]
    assert [other["threads"] for other in written["resumed_in"]] == [99]


def test_a_run_that_goes_on_with_other_kernels_says_so(tmp_path, caplog):
    batch = (torch.ones(4, 3), torch.tensor([0, 1, 0, 1]))

    class OneBatch:
        def __len__(self):
            return 1

        def __iter__(self):
            return iter([batch])

        def epoch(self, epoch, start=0):
            return iter([batch][start:])

    def go_on(epochs, compiled):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 2))
        prepare(model, QuantSpec.preset("w4a4"), sample=batch[0])
        calibrate(model, [batch])
        set_compiled(model, compiled)
        with RunFolder(tmp_path) as run:
            fit(model, torch.optim.SGD(model.parameters(), lr=0.1), OneBatch(), run=run, epochs=epochs)

    go_on(1, False)
    assert json.loads((tmp_path / "environment.json").read_text())["kernels"] == "eager"
    go_on(2, False)
    assert not caplog.records
    go_on(3, True)
    assert "kernels (eager, now fused) changed" in caplog.text
    caplog.clear()
    go_on(4, True)
    assert not caplog.records
    written = json.loads((tmp_path / "environment.json").read_text())
    assert [written["kernels"], *(other["kernels"] for other in written["resumed_in"])] == ["eager", "fused"]


def test_a_damaged_environment_file_is_named(tmp_path):
    (tmp_path / "environment.json").write_text("{")
    with RunFolder(tmp_path) as run, pytest.raises(CheckpointError, match=r"environment\.json"):
        run.record_environment({})


@pytest.mark.parametrize("name", ["lock", "metrics.jsonl", "timing.jsonl"])
@pytest.mark.parametrize("how", ["symlink_to", "hardlink_to"])
def test_a_link_in_a_run_folder_is_refused_and_what_it_leads_to_is_left_alone(tmp_path, name, how):
    victim, folder = tmp_path / "victim", tmp_path / "run"
    victim.write_text("precious")
    folder.mkdir()
    getattr(folder / name, how)(victim)
    with pytest.raises(RunFolderError, match=rf"{name}: got (a link|another name of a file); expected"):
        RunFolder(folder, RECIPE)
    assert victim.read_text() == "precious"


def test_a_pipe_in_the_place_of_a_log_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(RunFolderError, match=r"metrics\.jsonl: got a (device or a )?pipe"):
        RunFolder(tmp_path)


def test_a_link_in_the_place_of_a_temporary_file_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    write_atomic(tmp_path / "note.txt", b"old")
    (tmp_path / "note.txt.tmp").symlink_to(victim)
    write_atomic(tmp_path / "note.txt", b"new")
    assert (tmp_path / "note.txt").read_bytes() == b"new"
    assert victim.read_text() == "precious"


def test_the_trained_weights_can_be_read_while_the_folder_is_held(tmp_path):
    model, copy = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    batch = (torch.ones(4, 3), torch.tensor([0, 1, 0, 1]))

    class OneBatch:
        def __len__(self):
            return 1

        def epoch(self, epoch, start=0):
            return iter([batch][start:])

    with RunFolder(tmp_path) as run:
        fit(model, torch.optim.SGD(model.parameters(), lr=0.1), OneBatch(), run=run, epochs=2)
        assert load_trained(tmp_path, copy) == 2
    assert torch.equal(model.weight, copy.weight)
    with pytest.raises(CheckpointError, match="do not fit"):
        load_trained(tmp_path, torch.nn.Linear(4, 2))
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        load_trained(tmp_path / "other", copy)
