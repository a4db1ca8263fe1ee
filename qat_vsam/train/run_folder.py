"""The folder of one run: its recipe, logs, checkpoints and result, held by one process at a time."""

from __future__ import annotations

import difflib
import fcntl
import json
import logging
import os
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import nn

from qat_vsam.errors import CheckpointError, RunFolderError, explain
from qat_vsam.train.checkpoint import CheckpointFolder
from qat_vsam.train.files import LineLog, open_own, remove_temporaries, translate_errors, write_atomic
from qat_vsam.train.manifest import opened, sealed, write_manifest

BASELINE = "baseline.json"  # what was measured before the training
ENVIRONMENT = "environment.json"
_UNSEALED = ("package", "commit", "versions", "platform", "processor", "threads", "device", "resumed_in")
LONGEST_DIFFERENCE = 20  # lines of a recipe's difference that a message shows

logger = logging.getLogger(__name__)


class RunFolder:
    """Open a run, or begin one.

    The folder holds `recipe.yaml`, `metrics.jsonl` (no timings, so that it repeats byte for byte),
    `timing.jsonl`, `checkpoints/`, `exports/`, `environment.json` and, once the run is done, `result.json` and
    `manifest.sha256`, by which readers see that no file was bent.
    The operating system drops the lock when the process ends, however it ends.

    Args:
        path: the folder; created with its parents.
        recipe: the resolved recipe as text. It is kept, and once a step or a measurement is written, later calls
            must bring the same. None: not compared.
        keep_checkpoints: how many of the newest checkpoints stay.

    Raises:
        RunFolderError: another process holds the folder, the recipe differs, or the disk refuses.

    Example:
        >>> import tempfile
        >>> with RunFolder(tempfile.mkdtemp(), recipe="epochs: 1") as run:
        ...     run.log({"kind": "step", "step": 1, "loss": 0.5}, timing={"train_seconds": 0.1})
        ...     run.write_result({"schema": 1})
        ...     run.finished
        True
    """

    def __init__(self, path: str | Path, recipe: str | None = None, *, keep_checkpoints: int = 2) -> None:
        self.path = Path(path)
        self.exports = self.path / "exports"
        self.checkpoints = CheckpointFolder(self.path / "checkpoints", keep=keep_checkpoints)
        self._logs = ExitStack()
        with translate_errors(RunFolderError, self.path):
            self.exports.mkdir(parents=True, exist_ok=True)
            self._lock = open_own(self.path / "lock", os.O_RDWR)
        try:
            self._take_lock()
            with translate_errors(RunFolderError, self.path):
                remove_temporaries(self.path)
            if recipe is not None:
                self._keep_recipe(recipe)
            self._metrics = self._logs.enter_context(closing(LineLog(self.path / "metrics.jsonl")))
            self._timing = self._logs.enter_context(closing(LineLog(self.path / "timing.jsonl")))
        except BaseException:
            self.close()
            raise

    @property
    def finished(self) -> bool:
        """Whether the result is there, and nothing is left to do."""
        return (self.path / "result.json").is_file()

    def log(self, metrics: Mapping[str, object], timing: Mapping[str, object]) -> None:
        """Add a line to `metrics.jsonl`, and one with its `kind`, `step` and the timings to `timing.jsonl`.

        Raises:
            RunFolderError: the disk refused.
        """
        self._metrics.append(metrics)
        place = {key: metrics[key] for key in ("kind", "step") if key in metrics}
        self._timing.append(place | dict(timing))

    def save(self, epoch: int, step: int, state: Mapping[str, Any]) -> None:
        """Write a checkpoint that knows how long the logs are.

        Args:
            epoch: whole epochs done.
            step: steps done.
            state: nested dicts and lists of tensors and plain values.

        Raises:
            CheckpointError: the disk refused the checkpoint; the older ones are whole.
            RunFolderError: the disk refused the logs.
        """
        lengths = {"metrics": self._metrics.sync(), "timing": self._timing.sync()}
        self.checkpoints.save(epoch, step, {"logs": lengths, "training": dict(state)})

    def restore(self) -> dict[str, Any] | None:
        """The state of the newest whole checkpoint, with the logs cut back to it; None to begin anew.

        Raises:
            RunFolderError: a log is shorter than when the checkpoint was written.
        """
        checkpoint = self.checkpoints.newest(set_aside=True)
        if checkpoint is None:
            checkpoint = {"logs": {"metrics": 0, "timing": 0}, "training": None}
        self._metrics.cut(checkpoint["logs"]["metrics"])
        self._timing.cut(checkpoint["logs"]["timing"])
        training: dict[str, Any] | None = checkpoint["training"]
        return training

    def write_result(self, result: Mapping[str, object]) -> None:
        """Write `manifest.sha256`, and then `result.json`, which says that the run is finished.

        Args:
            result: plain values; None stands for a number that does not exist, NaN is not JSON.

        Raises:
            RunFolderError: the disk refused.
        """
        path = self.path / "result.json"
        data = (json.dumps(result, indent=2, allow_nan=False) + "\n").encode()
        with translate_errors(RunFolderError, path):
            write_manifest(self.path, data)
            write_atomic(path, data)

    def record_environment(self, environment: Mapping[str, object]) -> None:
        """Write `environment.json`; when a run goes on elsewhere, add that and warn that bits may differ.

        Raises:
            RunFolderError: the disk refused.
            CheckpointError: the file is not what was written.
        """
        first = read_environment(self.path)
        if first is None:
            self._write_environment(environment)
            return
        others = list(first.pop("resumed_in", []))
        last = others[-1] if others else first
        changed = [key for key in environment if last.get(key) != environment[key]]
        if changed:
            self._warn_of_change(", ".join(changed))
            self._write_environment(first | {"resumed_in": [*others, dict(environment)]})

    def record_kernels(self, kernels: str) -> None:
        """Add to `environment.json` which kernels the steps run on; warn where a run goes on with others.

        Args:
            kernels: "fused" or "eager", known when a step is done.

        Raises:
            RunFolderError: the disk refused.
            CheckpointError: the file is not what was written.
        """
        first = read_environment(self.path) or {}
        places = [first, *first.pop("resumed_in", [])]
        known = [place["kernels"] for place in places if "kernels" in place]
        if known and known[-1] != kernels:
            self._warn_of_change(f"the quantizers' kernels ({known[-1]}, now {kernels})")
        if places[-1].get("kernels", kernels) == kernels:
            places[-1]["kernels"] = kernels
        else:
            places.append(places[-1] | {"kernels": kernels})
        self._write_environment(places[0] | ({"resumed_in": places[1:]} if places[1:] else {}))

    def _warn_of_change(self, what: str) -> None:
        logger.warning(
            "%s: %s changed since the run began; the last bits may differ from an undisturbed run", self.path, what
        )

    def close(self) -> None:
        """Close the logs and let go of the folder."""
        self._logs.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(self._lock, 32, 0).decode(errors="replace").strip() or "unknown"
            raise RunFolderError(
                explain(
                    str(self.path),
                    f"a folder that process {owner} is running in",
                    "a folder of its own for each run",
                    "wait for that process, end it, or choose another folder",
                )
            ) from error
        with translate_errors(RunFolderError, self.path):
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def _keep_recipe(self, recipe: str) -> None:
        path = self.path / "recipe.yaml"
        with translate_errors(RunFolderError, path):
            if not path.exists():
                write_atomic(path, recipe.encode())
                return
            kept = path.read_text(errors="replace")
        if kept == recipe:
            return
        if not self._has_begun():
            with translate_errors(RunFolderError, path):
                # the place of an attempt that came to nothing is nobody's past
                (self.path / ENVIRONMENT).unlink(missing_ok=True)
                write_atomic(path, recipe.encode())
            return
        lines = list(
            difflib.unified_diff(
                kept.splitlines(), recipe.splitlines(), "the run's recipe", "this recipe", lineterm="", n=1
            )
        )
        if len(lines) > LONGEST_DIFFERENCE:
            lines = [*lines[:LONGEST_DIFFERENCE], f"... {len(lines) - LONGEST_DIFFERENCE} more lines"]
        raise RunFolderError(
            explain(
                str(path),
                "a changed recipe for a run that has begun",
                "the recipe it began with",
                "undo the change or choose another folder (--out):\n" + "\n".join(lines),
            )
        )

    def _has_begun(self) -> bool:
        """Whether a step or a measurement was written, so that the recipe can no longer change."""
        log = self.path / "metrics.jsonl"
        measured = any((self.path / name).exists() for name in ("result.json", BASELINE))
        return measured or bool(self.checkpoints.paths()) or (log.exists() and log.stat().st_size > 0)

    def _write_environment(self, content: Mapping[str, object]) -> None:
        path = self.path / ENVIRONMENT
        with translate_errors(RunFolderError, path):
            write_atomic(path, (json.dumps(sealed(content), indent=2, allow_nan=False) + "\n").encode())


def read_environment(folder: Path) -> dict[str, Any] | None:
    """Where a run began, and under `resumed_in` where it went on; None where nothing is recorded.

    Raises:
        RunFolderError: the disk refused.
        CheckpointError: the file is not what was written.
    """
    path = folder / ENVIRONMENT
    with translate_errors(RunFolderError, path):
        if not path.exists():
            return None
        data = path.read_bytes()
    return opened(path, data, _UNSEALED)


def load_trained(path: str | Path, model: nn.Module) -> int:
    """Load the weights of a run's newest whole checkpoint, or their moving average, into `model`.

    Changes nothing in the folder, so it may be called while the run goes on.

    Args:
        path: the run folder.
        model: built and prepared as the run's was.

    Returns:
        The step of the checkpoint.

    Raises:
        CheckpointError: there is no whole checkpoint, or it is of another model.
    """
    state = CheckpointFolder(Path(path) / "checkpoints").newest()
    if state is None:
        raise CheckpointError(explain(str(path), "no whole checkpoint", "a trained run", "train it first"))
    try:
        model.load_state_dict(state["training"].get("average", state["training"]["model"]))
    except RuntimeError as error:
        raise CheckpointError(
            explain(
                str(path),
                f"weights that do not fit: {error}",
                "the run's model",
                "build it from the run's recipe",
            )
        ) from error
    step: int = state["training"]["ledger"]["steps"]
    return step
