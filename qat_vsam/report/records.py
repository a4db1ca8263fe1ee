"""A study's runs as one file: `runs.jsonl` holds a line for each finished run and each finished trial.

Run folders are large and stay where they were made; a record keeps of one what a report needs of it: `result.json`,
the epochs, and enough steps to draw by. Recipes write records, reports read them.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from qat_vsam.errors import InputError, explain
from qat_vsam.report.schema import EpochRecord, RunRecord, StepRecord, TrialRecord, check, parse_json, read_text

RUNS = "runs.jsonl"
RESULT = "result.json"
METRICS = "metrics.jsonl"
MOST_STEPS = 30


class Record(BaseModel):
    """One finished run, or one finished trial of a setting.

    Attributes:
        arm, seed: which run of the comparison it is.
        trial: the setting that was tried, as the name of its folder; None for a run that counts.
        settings: of a trial, what it puts over the arm, by dotted key.
        result: the content of its result.json.
        epochs: the "epoch" lines of its metrics.jsonl.
        steps: at most 30 of the "step" lines, evenly spread, the last one included.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    arm: str
    seed: int
    trial: str | None = None
    settings: dict[str, Any] | None = None
    result: dict[str, Any]
    epochs: tuple[dict[str, Any], ...] = ()
    steps: tuple[dict[str, Any], ...] = ()

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells it from the others, and orders them: runs before trials."""
        return (self.trial or "", self.arm, self.seed)

    @property
    def recipe_sha256(self) -> str | None:
        """The fingerprint of the recipe that it ran, by which a comparison finds it finished."""
        value = self.result.get("recipe_sha256")
        return None if value is None else str(value)


def read_records(path: Path) -> list[Record]:
    """The records of a `runs.jsonl`, in their order.

    Args:
        path: the file, or the study folder that holds it.

    Raises:
        InputError: a line is broken, holds an impossible value or a result of an older schema, or repeats a run.
    """
    path = path / RUNS if path.is_dir() else path
    records = []
    lines: dict[tuple[str, str, int], int] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        record = parse_json(line, Record, where)
        _check_record(record, where)
        first = lines.setdefault(record.key, number)
        if first != number:
            raise InputError(
                explain(
                    where,
                    f"arm {record.arm}, seed {record.seed} again, as in line {first}",
                    "each run once",
                    "remove one of the two lines",
                )
            )
        records.append(record)
    return records


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Writes a `runs.jsonl`, sorted by trial, arm and seed; the file is whole at any moment.

    Args:
        path: the file; an older one is replaced.
        records: at most one for each run and trial.

    Raises:
        OSError: it cannot be written.
    """
    lines = [_line(record) for record in sorted(records, key=lambda record: record.key)]
    beside = path.with_name(path.name + ".new")
    beside.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
    os.replace(beside, path)


def record_of(
    folder: Path,
    *,
    arm: str | None = None,
    seed: int | None = None,
    trial: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Record:
    """The record of a finished run folder.

    Args:
        folder: with `result.json`, and `metrics.jsonl` where the run was trained.
        arm, seed: which run it is; None: as its result says. A trial's result does not.
        trial, settings: the name and the content of the setting, for a trial.

    Raises:
        InputError: a file is missing or broken, or the result is of an older schema.
    """
    where = str(folder / RESULT)
    text = read_text(folder / RESULT)
    found = parse_json(text, RunRecord, where) if trial is None else parse_json(text, TrialRecord, where)
    result: dict[str, Any] = json.loads(text)
    metrics = folder / METRICS
    lines = _metrics(read_text(metrics), str(metrics)) if trial is None and metrics.is_file() else []
    own = found if isinstance(found, RunRecord) else None
    if arm is None or seed is None:
        if own is None:
            raise InputError(explain(where, "a trial", "its arm and seed beside it", "pass arm= and seed="))
        arm, seed = arm or own.arm, own.seed if seed is None else seed
    return Record(
        arm=arm,
        seed=seed,
        trial=trial,
        settings=None if settings is None else dict(settings),
        result=result,
        epochs=tuple(line for line in lines if line["kind"] == "epoch"),
        steps=tuple(thinned([line for line in lines if line["kind"] == "step"])),
    )


def thinned(lines: Sequence[dict[str, Any]], most: int = MOST_STEPS) -> list[dict[str, Any]]:
    """At most so many of the lines, evenly spread, the last one included.

    Example:
        >>> [line["step"] for line in thinned([{"step": step} for step in range(1, 11)], most=3)]
        [4, 7, 10]
    """
    if len(lines) <= most:
        return list(lines)
    return [lines[-1 - (number * len(lines)) // most] for number in reversed(range(most))]


def _check_record(record: Record, where: str) -> None:
    check(record.result, RunRecord if record.trial is None else TrialRecord, where)
    kinds: tuple[tuple[str, type[BaseModel], Sequence[dict[str, Any]]], ...] = (
        ("epochs", EpochRecord, record.epochs),
        ("steps", StepRecord, record.steps),
    )
    for name, kind, lines in kinds:
        for number, line in enumerate(lines, start=1):
            check(line, kind, f"{where}, {name} {number}")


def _metrics(text: str, where: str) -> list[dict[str, Any]]:
    """The step and epoch lines; lines of other kinds are for other readers."""
    lines = []
    kinds: dict[str, type[BaseModel]] = {"epoch": EpochRecord, "step": StepRecord}
    for number, line in enumerate(text.splitlines(), start=1):
        content = {key: _finite(value) for key, value in parse_json(line, _Line, f"{where}, line {number}")}
        kind = kinds.get(str(content.get("kind")))
        if kind is not None:
            check(content, kind, f"{where}, line {number}")
            lines.append(content)
    return lines


def _finite(value: Any) -> Any:
    """JSON has no NaN: a statistic that did not exist yet is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _Line(BaseModel):
    """One line of metrics.jsonl, whatever it holds."""

    model_config = ConfigDict(extra="allow")


def _line(record: Record) -> str:
    without = {"settings"} if record.trial is None else {"epochs", "steps"}
    return json.dumps(record.model_dump(exclude=without), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
