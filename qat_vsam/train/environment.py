"""On what a run ran: the facts that bit-identical repetition depends on."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from qat_vsam.quant.compiled import compiled_kernels

_PACKAGES = ("torch", "torchvision", "numpy")
_PACKAGE = Path(__file__).parents[1]
_GIT_SECONDS = 5.0


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Versions, commit, thread count, processor and device, as plain values.

    Example:
        >>> sorted(describe_environment(torch.device("cpu")))
        ['commit', 'device', 'package', 'platform', 'processor', 'threads', 'versions']
    """
    versions = {name: version for name in _PACKAGES if (version := _version(name)) is not None}
    return {
        "package": _version("qat-vsam"),
        "commit": source_commit(_PACKAGE),
        "versions": versions | {"python": platform.python_version()},
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
    }


def fused_calls() -> int:
    """How often this process has used the fused kernels of the quantizers."""
    return compiled_kernels.cache_info().hits


@cache
def source_commit(package: Path) -> str | None:
    """The commit of the checkout that a package's folder is tracked in, looked up once a process.

    Args:
        package: folder of the source.

    Returns:
        Twelve digits or more, with `+dirty` where tracked files of the folder differ from the commit; None where git is
        missing, or where the folder is no tracked part of a checkout (a package installed below one is none).
    """
    commit = _git(package, "rev-parse", "--short=12", "HEAD")
    if not commit or not _git(package, "ls-files", "--error-unmatch", "__init__.py"):
        return None
    changes = _git(package, "status", "--porcelain", "--untracked-files=no", "--", ".")
    return commit if changes == "" else f"{commit}+dirty"


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints about a folder, None where it fails."""
    # a hook of git that runs this sets GIT_DIR and the like, which mean another checkout
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(folder), *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
