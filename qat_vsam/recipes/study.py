"""The study folder: a comparison in a few files that are committed, so that it goes on after a change of machine."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from qat_vsam.errors import RunFolderError, explain
from qat_vsam.report.records import RUNS, read_records, record_of, write_records
from qat_vsam.train.files import translate_errors
from qat_vsam.train.manifest import check_manifest


class FinishedRun(Protocol):
    """What a study asks of a run: which it is, and where its files lie."""

    @property
    def arm(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def setting(self) -> str | None: ...
    @property
    def settings(self) -> Mapping[str, Any] | None: ...
    @property
    def folder(self) -> Path: ...


class StudyFolder:
    """Open a study, or begin one; held by one comparison at a time.

    `runs.jsonl` has a line for each finished run and trial. What is in it is not made again, wherever that was. The
    operating system drops the lock when the process ends, however it ends; no file is left of it.

    Args:
        path: the folder; created with its parents.

    Raises:
        RunFolderError: another comparison holds it, or the disk refuses.
        InputError: `runs.jsonl` is broken, or of an older schema.

    Example:
        >>> import tempfile
        >>> with StudyFolder(tempfile.mkdtemp()) as study:
        ...     study.result("float32-sgd", 0) is None
        True
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with translate_errors(RunFolderError, self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._take_lock()
            runs = self.path / RUNS
            self._records = {_key(r.arm, r.seed, r.trial): r for r in (read_records(runs) if runs.exists() else [])}
        except BaseException:
            self.close()
            raise

    def result(self, arm: str, seed: int, trial: str | None = None) -> dict[str, Any] | None:
        """The result of a finished run, or of a trial of the setting so named; None where there is none."""
        record = self._records.get(_key(arm, seed, trial))
        return None if record is None else record.result

    def add(self, finished: Iterable[FinishedRun]) -> None:
        """Take the results of finished run folders over; those of the same arm, seed and setting are replaced.

        Raises:
            CheckpointError: a file of a run was bent since it was finished.
            RunFolderError: the disk refused; what was there before is still whole.
        """
        finished = list(finished)
        for run in finished:
            check_manifest(run.folder)
        new = {
            _key(run.arm, run.seed, run.setting): record_of(
                run.folder, arm=run.arm, seed=run.seed, trial=run.setting, settings=run.settings
            )
            for run in finished
        }
        if not new:
            return
        self._records |= new
        with translate_errors(RunFolderError, self.path / RUNS):
            write_records(self.path / RUNS, self._records.values())

    def close(self) -> None:
        """Let go of the folder."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> StudyFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            rule = "one comparison at a time"
            advice = "wait for the other to end, or choose another folder for --study"
            raise RunFolderError(
                explain(str(self.path), "a study that another comparison holds", rule, advice)
            ) from None


def _key(arm: str, seed: int, trial: str | None) -> tuple[str, str, int]:
    return (trial or "", arm, seed)
