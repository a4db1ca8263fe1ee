"""However a comparison is stopped, all its processes end, what was trained is kept, and the same command goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qat_vsam.train import RunFolder

GRID = """
name: grid
title: A small grid
seeds: 2
workers: 2
bench: null
recipe:
  model: {name: digits_cnn, options: {width: 4}}
  data: {name: digits, train_size: 100, batch_size: 20}
  optimizer: {name: sgd, lr: 0.05}
  train: {epochs: 20000, compile_quantizers: false}
arms:
  float32-sgd: {}
  float32-sam: {optimizer: {name: sam, rho: 0.1}}
"""


@pytest.fixture
def started(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A comparison in a session of its own, whose two workers have written a checkpoint."""
    (tmp_path / "grid.yaml").write_text(GRID)
    run = "from qat_vsam.cli import main; main()"
    command = [sys.executable, "-c", run, "compare", str(tmp_path / "grid.yaml"), "--out", str(tmp_path / "grid")]
    process = subprocess.Popen(
        command,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: len(runs(tmp_path)) == 2 or process.poll() is not None)
        yield process
    finally:
        for left in members(process.pid):
            os.kill(left, signal.SIGKILL)
        process.communicate()


def runs(folder: Path) -> set[Path]:
    return {path.parent.parent for path in folder.glob("grid/*/seed-0/checkpoints/*.pt")}


def members(session: int) -> list[int]:
    """The processes of a session that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(words[3]) == session and words[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def wait_until(reached: Callable[[], bool]) -> None:
    while not reached():
        time.sleep(0.02)


def assert_kept(folder: Path) -> None:
    for run in runs(folder):
        with RunFolder(run) as opened:  # no worker holds it any more
            assert opened.restore() is not None


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_the_whole_group_ends_it_with_one_line(
    started: subprocess.Popen[str], tmp_path: Path, signum: signal.Signals, code: int
) -> None:
    os.killpg(started.pid, signum)
    _, complaint = started.communicate()
    assert started.returncode == code, complaint
    assert complaint.strip().splitlines()[-1] == f"stopped by {signum.name}; the same command goes on from here"
    assert "Traceback" not in complaint
    wait_until(lambda: not members(started.pid))
    assert_kept(tmp_path)


def test_workers_whose_parent_was_killed_stop_at_a_checkpoint_and_let_go(
    started: subprocess.Popen[str], tmp_path: Path
) -> None:
    started.kill()
    wait_until(lambda: not members(started.pid))
    assert len(runs(tmp_path)) == 2
    assert_kept(tmp_path)
