"""Checkpoints that are either whole or refused.

A checkpoint is two files: `epoch-0001-step-00000012.pt`, which `torch.load(weights_only=True)` reads, and the
same name with `.sha256` added, a line in the format of `sha256sum -c`. The line is written first, so a `.pt`
file that exists has its line. Inside, the list of all entries travels along: one that was dropped is missed.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from qat_vsam.errors import CheckpointError, explain
from qat_vsam.train.files import remove_temporaries, sync_folder, translate_errors, write_atomic

FORMAT = 1
BROKEN_SUFFIX = ".broken"

logger = logging.getLogger(__name__)


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write `state` to `path` and its hash beside it, each file all or nothing.

    Args:
        path: where; the folder must exist.
        state: nested dicts and lists of tensors and plain values.

    Raises:
        CheckpointError: the disk refused; a checkpoint with another name is untouched.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "first.pt"
        >>> write_checkpoint(path, {"weight": torch.ones(2), "step": 1})
        >>> read_checkpoint(path)
        {'weight': tensor([1., 1.]), 'step': 1}
    """
    payload = {"format": FORMAT, "entries": _entries(state), "state": dict(state)}
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    data = buffer.getbuffer()
    with translate_errors(CheckpointError, path):
        write_atomic(hash_path(path), _hash_line(path, data))
        write_atomic(path, data)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read back what `write_checkpoint` wrote, on the CPU, or refuse.

    Args:
        path: the `.pt` file; its `.sha256` neighbour is read too. No pickled code is ever executed.

    Returns:
        The `state` that was written.

    Raises:
        CheckpointError: a file is missing, cut, altered, of another format, or lacks an entry.
    """
    with translate_errors(CheckpointError, path):
        data = path.read_bytes()
        line = hash_path(path).read_bytes()
    if line != _hash_line(path, data):
        raise _refusal(path, f"{len(data)} bytes that do not match {hash_path(path).name}", "the bytes written")
    try:
        payload = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile file may raise anything out of the unpickler
        raise _refusal(path, f"{type(error).__name__} while reading", "tensors and plain values") from error
    if not isinstance(payload, dict) or set(payload) != {"format", "entries", "state"}:
        raise _refusal(path, "another layout", "the entries format, entries and state")
    if payload["format"] != FORMAT:
        raise _refusal(path, f"format {payload['format']}", f"format {FORMAT}")
    found, promised = set(_entries(payload["state"])), set(payload["entries"])
    if found != promised:
        missing, added = sorted(promised - found), sorted(found - promised)
        raise _refusal(path, f"entries missing {missing[:5]}, unknown {added[:5]}", "the entries written")
    state: dict[str, Any] = payload["state"]
    return state


def hash_path(path: Path) -> Path:
    """The file that holds the hash of `path`."""
    return path.with_name(path.name + ".sha256")


class CheckpointFolder:
    """The checkpoints of one run, of which the newest few are kept.

    Args:
        path: the folder; created when the first checkpoint is saved.
        keep: how many stay; two, so that one is whole while the other is written and judged.

    Example:
        >>> import tempfile
        >>> folder = CheckpointFolder(Path(tempfile.mkdtemp()))
        >>> for step in (1, 2, 3):
        ...     folder.save(0, step, {"step": step})
        >>> [path.name for path in folder.paths()]
        ['epoch-0000-step-00000002.pt', 'epoch-0000-step-00000003.pt']
        >>> folder.newest()
        {'step': 3}
    """

    def __init__(self, path: Path, keep: int = 2) -> None:
        self.path = path
        self.keep = keep

    def paths(self) -> list[Path]:
        """The checkpoint files, oldest first."""
        return sorted(self.path.glob("epoch-*-step-*.pt"))

    def save(self, epoch: int, step: int, state: Mapping[str, Any]) -> None:
        """Write a checkpoint, then delete those that are no longer kept.

        Args:
            epoch: whole epochs done; the step that ends an epoch may have one before and one after the end.
            step: steps done.
            state: what `write_checkpoint` takes.

        Raises:
            CheckpointError: the disk refused; the older checkpoints are whole.
        """
        with translate_errors(CheckpointError, self.path):
            if not self.path.is_dir():
                self.path.mkdir(parents=True)
                sync_folder(self.path.parent)
        write_checkpoint(self.path / f"epoch-{epoch:04d}-step-{step:08d}.pt", state)
        with translate_errors(CheckpointError, self.path):
            for old in self.paths()[: -self.keep]:
                old.unlink()
                hash_path(old).unlink(missing_ok=True)

    def newest(self, *, set_aside: bool = False) -> dict[str, Any] | None:
        """The newest whole checkpoint, or None if there is none; broken ones are reported and passed over.

        Args:
            set_aside: rename the broken ones to `NAME.broken`, and remove what a killed writer left. For the
                one process that owns the run.
        """
        if set_aside:
            with translate_errors(CheckpointError, self.path):
                remove_temporaries(self.path)
        for path in reversed(self.paths()):
            try:
                return read_checkpoint(path)
            except CheckpointError as error:
                logger.warning("%s", error)
                if set_aside:
                    with translate_errors(CheckpointError, path):
                        os.replace(path, path.with_name(path.name + BROKEN_SUFFIX))
                        sync_folder(self.path)
        return None


def _hash_line(path: Path, data: bytes | memoryview) -> bytes:
    return f"{hashlib.sha256(data).hexdigest()}  {path.name}\n".encode()


def _entries(value: object, where: str = "") -> list[str]:
    """One line per leaf, with its place, type and shape."""
    if isinstance(value, Mapping) and value:
        return [line for key, child in value.items() for line in _entries(child, f"{where}/{key}")]
    if isinstance(value, list | tuple) and value:
        return [line for index, child in enumerate(value) for line in _entries(child, f"{where}/{index}")]
    if isinstance(value, torch.Tensor):
        return [f"{where} {value.dtype} {tuple(value.shape)}"]
    return [f"{where} {type(value).__name__}"]


def _refusal(path: Path, got: str, expected: str) -> CheckpointError:
    return CheckpointError(explain(str(path), got, expected, "use an older checkpoint or start the run again"))
