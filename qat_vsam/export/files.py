"""Files that are either whole or absent: written beside their place, flushed to disk, then renamed."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from qat_vsam.errors import CheckpointError, explain


def sha256(data: bytes) -> str:
    """Hexadecimal SHA-256 of some bytes."""
    return hashlib.sha256(data).hexdigest()


def read_bytes(path: Path) -> bytes:
    """Content of a file.

    Raises:
        CheckpointError: the file is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(explain(str(path), reason, "a readable file", "check the path")) from error


@contextlib.contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A temporary place in the folder of `path`; removed at the end, whatever happened.

    The block writes there and calls `commit`. A failure of the disk inside the block (full, read-only, no
    such folder) becomes one clear error, and nothing is left behind.

    Raises:
        CheckpointError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
    except OSError as error:
        reason = error.strerror or str(error)
        do = "free some space or choose another place"
        raise CheckpointError(explain(str(path), reason, "a place that can be written", do)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write(temporary: Path, data: bytes) -> None:
    """Write and flush to disk, so that a later rename never shows a half file."""
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def commit(temporary: Path, path: Path) -> None:
    """Rename into place and flush the folder's entry."""
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
