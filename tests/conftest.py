"""What all tests share: one thread of torch, since exactness is promised for a number of them; data; broken copies."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

# inherited by the processes that tests start
os.environ["OMP_NUM_THREADS"] = "1"

import torch

torch.set_num_threads(1)

ROOT = Path(__file__).parents[1]
Edits = Iterable[tuple[str, str, str]]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Every test, and the first to need a fixture, begins with the same torch draws, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Where CIFAR-10 and the public checkpoints lie; without it a test skips."""
    folder = os.environ.get("QAT_VSAM_DATA")
    if folder is None:
        pytest.skip("QAT_VSAM_DATA names no folder with CIFAR-10 and the public checkpoints")
    return Path(folder)


@pytest.fixture
def run_on_a_copy(tmp_path: Path) -> Callable[[Edits, str, str], tuple[int, str]]:
    """run(edits, file, expression): exit status and end of the output of tests on a copy of the package.

    An edit is (module, old, new), the module a path below the package without its ending; old stands there once. The
    file is named from the folder of the tests, the expression is pytest's -k.
    """

    def run(edits: Edits, file: str, expression: str) -> tuple[int, str]:
        ignored = shutil.ignore_patterns("__pycache__")
        for folder in ("qat_vsam", f"tests/{Path(file).parent}"):
            shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
        shutil.copy(ROOT / "tests" / "conftest.py", tmp_path / "tests")
        shutil.copy(ROOT / "pyproject.toml", tmp_path)
        for module, old, new in edits:
            path = tmp_path / "qat_vsam" / f"{module}.py"
            text = path.read_text()
            assert text.count(old) == 1, f"{module}: what is to be broken stands there {text.count(old)} times"
            path.write_text(text.replace(old, new))
        # The folder that python -m starts in comes first on the path, before an installed package.
        command = [sys.executable, "-m", "pytest", f"tests/{file}", "-k", expression, "-x", "-q"]
        options = ["-p", "no:cacheprovider", "-p", "no:randomly"]
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "PYTHONPATH"))}
        done = subprocess.run(
            [*command, *options], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280
        )
        return done.returncode, done.stdout[-2000:] + done.stderr[-1000:]

    return run


@pytest.fixture
def assert_killed(run_on_a_copy: Callable[[Edits, str, str], tuple[int, str]]) -> Callable[[Edits, str, str], None]:
    """assert_killed(edits, file, expression): on such a copy the tests run, and fail."""

    def check(edits: Edits, file: str, expression: str) -> None:
        status, output = run_on_a_copy(edits, file, expression)
        # 1: tests ran and failed. Any other status means that they could not be run, which shows nothing.
        assert status == 1, output
        assert "error" not in output.splitlines()[-1], output

    return check
