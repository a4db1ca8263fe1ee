"""Promises of form: lint, layout, strict types on quant and optim, and what may import what."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHECKS = {
    "ruff check": ["ruff", "check", "qat_vsam", "tests"],
    "ruff format": ["ruff", "format", "--check", "qat_vsam", "tests"],
    "mypy": ["mypy"],
    "import-linter": ["lint-imports"],
}


@pytest.mark.parametrize("name", CHECKS)
def test_the_static_checks_pass(name: str) -> None:
    command = CHECKS[name]
    program = shutil.which(command[0], path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip(f"{command[0]} is not installed beside this Python; pip install -e '.[test]'")
    done = subprocess.run([program, *command[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
