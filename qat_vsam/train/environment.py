"""On what a run ran: the facts that bit-identical repetition depends on."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path

import torch

_PACKAGES = ("qat-vsam", "torch", "torchvision", "numpy")


def describe_environment(device: torch.device) -> dict[str, object]:
    """Versions, thread count, processor and device, as plain values.

    Example:
        >>> sorted(describe_environment(torch.device("cpu")))
        ['device', 'platform', 'processor', 'python', 'threads', 'versions']
    """
    return {
        "python": platform.python_version(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name)) is not None},
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
    }


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
