from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _untouched_process() -> Iterator[None]:
    """The thread count is the process's: each test gives it back."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def digits_run() -> SimpleNamespace:
    """The functions of `digits_run.py`."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("digits_run.py"))))


@pytest.fixture(scope="module")
def start_script() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a script of this folder as a process of its own; what is still there at the end is killed."""
    processes: list[subprocess.Popen[str]] = []

    def start(name: str, *arguments: object, stdin: int | None = None) -> subprocess.Popen[str]:
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name(name)), *map(str, arguments)],
            env=environment,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def steps_logged() -> Callable[[Path], int]:
    """How many steps a run's log shows, a line under way not counted."""

    def count(folder: Path) -> int:
        log = folder / "metrics.jsonl"
        lines = log.read_text().split("\n")[:-1] if log.exists() else []
        return sum(json.loads(line)["kind"] == "step" for line in lines)

    return count


@pytest.fixture
def assert_same_end() -> Callable[[Path, Path], None]:
    """Two runs ended in the same bits: checkpoint (but for clock and memory) and metrics."""

    def compare(one: Path, other: Path) -> None:
        from qat_vsam.train import CheckpointFolder

        states = [CheckpointFolder(folder / "checkpoints").newest() for folder in (one, other)]
        for state in states:
            assert state is not None
            del state["logs"]["timing"]
            for clock in ("train_seconds", "evaluation_seconds", "peak_memory_bytes"):
                del state["training"]["ledger"][clock]
        assert_same_bits(states[0], states[1])
        assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()

    return compare


def assert_same_bits(one: Any, other: Any, where: str = "") -> None:
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert list(one) == list(other), where
        for key in one:
            assert_same_bits(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_same_bits(left, right, f"{where}/{index}")
    else:
        assert one == other, where
