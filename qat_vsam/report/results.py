"""Reads the runs of a study into frames: one row per run, per export, per logged step, per epoch and per trial.

Everything is checked here, once, so that statistics, tables and figures work on sound numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel

from qat_vsam.errors import InputError, explain
from qat_vsam.report.choices import Choice, read_choices
from qat_vsam.report.comparison import ComparisonFile, read_comparison
from qat_vsam.report.provenance import Provenance, between_arms, check_comparable, provenance_of
from qat_vsam.report.records import RESULT, RUNS, Record, read_records, record_of
from qat_vsam.report.schema import (
    BenchRecord,
    EpochRecord,
    RunRecord,
    StepRecord,
    TrialRecord,
    check,
    read_json,
)

TRIALS = "tune"
BENCH = "bench.json"


@dataclass(frozen=True)
class Results:
    """What was found below the given folders.

    Attributes:
        runs: one row per run, ordered by arm and seed; accuracies are fractions.
        exports: one row per run and export format.
        steps: the "step" lines of every run, with the columns arm and seed.
        epochs: the "epoch" lines, likewise.
        trials: one row per trial and setting, with the setting as a mapping.
        options: the optimizer's options of each arm, and what it derived from them.
        provenance: commits, versions, machines and date of the runs.
        marks: sentences on what sets runs or arms apart that a reader would take to be made alike.
        bench: interleaved step times, or None.
        unfinished: names of runs that the comparison wants and that hold no result yet.
        comparison: what the study's comparison.yaml says; empty without one.
        choices: how settings were chosen by trials, where they were.
    """

    runs: pd.DataFrame
    exports: pd.DataFrame
    steps: pd.DataFrame
    epochs: pd.DataFrame
    trials: pd.DataFrame
    options: dict[str, dict[str, Any]]
    provenance: Provenance
    marks: tuple[str, ...]
    bench: BenchRecord | None
    unfinished: tuple[str, ...]
    comparison: ComparisonFile
    choices: tuple[Choice, ...]


def load_results(runs: Path | Sequence[Path], bench: Path | None = None) -> Results:
    """Reads every finished run below `runs`.

    Args:
        runs: a study folder (`runs.jsonl`, or else ARM/seed-K/result.json below it; comparison.yaml, tuned.yaml and
            bench.json in it), or single run folders.
        bench: a bench.json to use in place of the folder's own.

    Raises:
        InputError: a folder is missing or holds no result; a file is broken or holds an impossible value; an arm has
            one seed twice; runs that would be compared differ in model or data.
    """
    roots = [Path(runs)] if isinstance(runs, str | Path) else [Path(root) for root in runs]
    found = {where: record for root in roots for where, record in _records(root).items()}
    counted = [(where, record) for where, record in found.items() if record.trial is None]
    if not counted:
        where = ", ".join(str(root) for root in roots) or "no folder"
        raise InputError(
            explain(
                "runs",
                f"{where} without any {RESULT}",
                f"a run folder, or a study folder with {RUNS} in it or ARM/seed-K/{RESULT} below it",
                "finish a run with `qat-vsam train` or `qat-vsam compare` first",
            )
        )
    read = [(where, check(record.result, RunRecord, where), record) for where, record in counted]
    read.sort(key=lambda item: (item[1].arm, item[1].seed))
    ordered = [(where, run) for where, run, _ in read]
    comparison = read_comparison(roots)
    check_comparable(ordered, comparison.differing)
    steps = [_lines(run, record.steps, StepRecord) for _, run, record in read]
    epochs = [_lines(run, record.epochs, EpochRecord) for _, run, record in read]
    options: dict[str, dict[str, Any]] = {}
    for _, run in ordered:
        options.setdefault(
            run.arm, {**run.optimizer_options, **({"derived": d} if (d := run.optimizer_derived) else {})}
        )
    provenance = provenance_of(ordered)
    return Results(
        runs=pd.DataFrame([_run_row(run) for _, run in ordered]),
        exports=_frame([row for _, run in ordered for row in _export_rows(run)], _EXPORT_COLUMNS),
        steps=_frame([row for rows in steps for row in rows], ("arm", "seed", *StepRecord.model_fields)),
        epochs=_frame([row for rows in epochs for row in rows], ("arm", "seed", *EpochRecord.model_fields)),
        trials=_frame(
            [_trial_row(where, record) for where, record in found.items() if record.trial is not None],
            ("arm", "seed", "settings", "validation_accuracy", "diverged"),
        ),
        options=options,
        provenance=provenance,
        marks=(*between_arms(ordered), *provenance.marks),
        bench=_find_bench(roots, bench),
        unfinished=_unfinished(roots, comparison, [(run.arm, run.seed) for _, run in ordered]),
        comparison=comparison,
        choices=read_choices(roots),
    )


def _records(root: Path) -> dict[str, Record]:
    """Where each record was read, and the record."""
    if (root / RUNS).is_file():
        return {f"{root / RUNS}: {'/'.join(map(str, record.key))}": record for record in read_records(root / RUNS)}
    return {str(folder.resolve() / RESULT): record_of(folder) for folder in _run_folders(root)}


def _run_folders(root: Path) -> list[Path]:
    if root.name == RESULT and root.is_file():
        return [root.parent]
    if not root.is_dir():
        raise InputError(explain("runs", root, "an existing folder", "check the path"))
    if (root / RESULT).is_file():
        return [root]
    # trials are no runs of the comparison: they have a validation accuracy and nothing else
    found = [path.parent for path in root.rglob(RESULT)]
    return sorted(folder for folder in found if folder.relative_to(root).parts[0] != TRIALS)


def _unfinished(roots: Sequence[Path], comparison: ComparisonFile, known: Sequence[tuple[str, int]]) -> tuple[str, ...]:
    """Runs that the comparison asks for, or that have begun, without a result."""
    asked = [(arm, seed) for arm in comparison.arms for seed in range(comparison.seeds or 0)]
    names = [f"{arm}/seed-{seed}" for arm, seed in asked if (arm, seed) not in set(known)]
    for root in roots:
        begun = sorted(folder for folder in root.glob("*/seed-*") if folder.is_dir() and not (root / RUNS).is_file())
        names += [f"{folder.parent.name}/{folder.name}" for folder in begun if not (folder / RESULT).exists()]
    return tuple(dict.fromkeys(names))


def _run_row(run: RunRecord) -> dict[str, Any]:
    said = run.provenance
    return {
        "name": run.name,
        "arm": run.arm,
        "label": run.label,
        "seed": run.seed,
        "precision": run.precision,
        "target": run.target,
        "kind": run.kind,
        "optimizer": run.optimizer,
        "test_accuracy": run.accuracy.test,
        "validation_accuracy": run.accuracy.validation,
        "float_before": run.accuracy.float_before,
        "calibrated": run.accuracy.calibrated,
        "training_loss": run.training_loss,
        **run.cost.model_dump(),
        **run.size.model_dump(),
        "epochs": run.epochs,
        "model": run.model.name,
        "parameters": run.model.parameters,
        "data": run.data.name,
        "data_seed": run.data.seed,
        "augment": run.data.augment,
        "label_noise": run.data.label_noise,
        "data_options": _json(run.data.options),
        "train_images": run.data.train,
        "validation_images": run.data.validation,
        "test_images": run.data.test,
        "command": run.command,
        "recipe_sha256": run.recipe_sha256,
        "optimizer_options": _json(run.optimizer_options),
        "optimizer_derived": None if run.optimizer_derived is None else _json(run.optimizer_derived),
        **said.model_dump(exclude={"versions"}),
        **{f"version_{library}": version for library, version in sorted(said.versions.items())},
    }


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, sort_keys=True)


_EXPORT_COLUMNS = (
    "arm",
    "seed",
    "format",
    "bytes",
    "test_accuracy",
    "trained_accuracy",
    "latency_ms",
    "argmax_agreement",
    "codes_equal",
    "passed",
    "worst_layer",
    "runtime",
    "inputs",
)


def _export_rows(run: RunRecord) -> list[dict[str, Any]]:
    return [
        {
            "arm": run.arm,
            "seed": run.seed,
            "format": export.format,
            "bytes": export.bytes,
            "test_accuracy": export.test_accuracy,
            "trained_accuracy": run.accuracy.test,
            "latency_ms": export.latency_ms,
            "argmax_agreement": export.proof.argmax_agreement,
            "codes_equal": export.proof.codes_equal,
            "passed": export.proof.passed,
            "worst_layer": export.proof.worst_layer,
            "runtime": export.proof.runtime,
            "inputs": export.proof.inputs,
        }
        for export in run.exports
    ]


def _trial_row(where: str, record: Record) -> dict[str, Any]:
    trial = check(record.result, TrialRecord, where)
    return {
        "arm": record.arm,
        "seed": record.seed,
        "settings": record.settings or {},
        "validation_accuracy": trial.validation_accuracy,
        "diverged": trial.diverged,
    }


def _lines(run: RunRecord, lines: Sequence[dict[str, Any]], kind: type[BaseModel]) -> list[dict[str, Any]]:
    return [{"arm": run.arm, "seed": run.seed, **kind.model_validate(line).model_dump()} for line in lines]


def _frame(rows: list[dict[str, Any]], columns: Iterable[str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(columns))


def _find_bench(roots: Sequence[Path], bench: Path | None) -> BenchRecord | None:
    if bench is not None:
        return read_json(Path(bench), BenchRecord)
    found = [root / BENCH for root in roots if (root / BENCH).is_file()]
    return read_json(found[0], BenchRecord) if found else None
