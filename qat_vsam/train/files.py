"""Files that a crash or a full disk cannot leave half written."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from qat_vsam.errors import CheckpointError, RunFolderError, explain

TEMPORARY_SUFFIX = ".tmp"

_ADVICE = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your quota",
    errno.EACCES: "change its permissions or choose another folder",
    errno.EPERM: "change its permissions or choose another folder",
    errno.EROFS: "choose a folder on a disk that is mounted writable",
}


def write_atomic(path: Path, data: bytes | memoryview) -> None:
    """Replace the content of `path` by `data`, all of it or nothing.

    The bytes go to a temporary neighbour that is forced to the disk before it takes the name, and the folder
    is forced after, so that neither a kill nor a power cut shows a reader a part of the file.

    Args:
        path: the file; its folder must exist.
        data: the whole new content.

    Raises:
        OSError: the disk refused; the old content is still there and the temporary file is gone.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_atomic(folder / "note.txt", b"whole")
        >>> [(file.name, file.read_bytes()) for file in folder.iterdir()]
        [('note.txt', b'whole')]
    """
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    try:
        # made anew: a link of that name would lead to somebody else's file
        temporary.unlink(missing_ok=True)
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def open_own(path: Path, flags: int) -> int:
    """Open a file that a run keeps open and changes, or make it; a link, which leads to another's file, is refused.

    Args:
        path: the file.
        flags: for `os.open`, beside those that make it.

    Returns:
        The descriptor.

    Raises:
        RunFolderError: the name is a link, one of several names of a file, or no file at all.
        OSError: the disk refused.
    """
    # without O_NONBLOCK a pipe would be waited for
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO):
            raise
        raise _not_own(path, "a link" if error.errno == errno.ELOOP else "a pipe") from None
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
        return descriptor
    os.close(descriptor)
    raise _not_own(path, "another name of a file" if stat.S_ISREG(status.st_mode) else "a device or a pipe")


def _not_own(path: Path, got: str) -> RunFolderError:
    return RunFolderError(explain(str(path), got, "a file of the run's own", "delete it, or choose another folder"))


def sync_folder(folder: Path) -> None:
    """Force the names in `folder` to the disk: a rename is not durable before."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporaries(folder: Path) -> None:
    """Delete what a writer that was killed inside `write_atomic` left in `folder`."""
    for leftover in folder.glob("*" + TEMPORARY_SUFFIX):
        leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def translate_errors(kind: type[CheckpointError] | type[RunFolderError], path: Path) -> Iterator[None]:
    """Turn an `OSError` inside the block into one line of `kind` that says what to do about `path`."""
    try:
        yield
    except OSError as error:
        code = errno.errorcode.get(error.errno or 0, "unknown error")
        advice = _ADVICE.get(error.errno or 0, "check the disk")
        raise kind(
            explain(
                str(path),
                f"{error.strerror or error} ({code})",
                "a place that can be read and written",
                f"{advice}, then run the same command again: it goes on from the last whole checkpoint",
            )
        ) from error


class LineLog:
    """A file of JSON lines that only grows, and that a resumed run cuts back to a length it knows.

    Args:
        path: the file; created if missing.

    Example:
        >>> import tempfile
        >>> log = LineLog(Path(tempfile.mkdtemp()) / "log.jsonl")
        >>> log.append({"step": 1})
        >>> length = log.sync()
        >>> log.append({"step": 2})
        >>> log.cut(length)
        >>> log.path.read_text()
        '{"step": 1}\\n'
        >>> log.close()
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with translate_errors(RunFolderError, path):
            self._file = os.fdopen(open_own(path, os.O_WRONLY | os.O_APPEND), "ab")

    def append(self, record: Mapping[str, object]) -> None:
        """Add one line and hand it to the operating system, so that a reader sees it at once."""
        line = json.dumps(record, allow_nan=False) + "\n"
        with translate_errors(RunFolderError, self.path):
            self._file.write(line.encode())
            self._file.flush()

    def sync(self) -> int:
        """Force all lines to the disk and return the length of the file in bytes."""
        with translate_errors(RunFolderError, self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
            return os.fstat(self._file.fileno()).st_size

    def cut(self, length: int) -> None:
        """Drop all after the first `length` bytes.

        Raises:
            RunFolderError: the file is shorter, so lines that the checkpoint counts on are lost.
        """
        with translate_errors(RunFolderError, self.path):
            size = os.fstat(self._file.fileno()).st_size
            if size < length:
                raise RunFolderError(
                    explain(
                        str(self.path),
                        f"{size} bytes",
                        f"at least the {length} bytes that the checkpoint was written with",
                        "restore the file, or start the run in another folder",
                    )
                )
            self._file.truncate(length)
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; on a full disk the line that could not be written is dropped."""
        with contextlib.suppress(OSError):
            self._file.close()
