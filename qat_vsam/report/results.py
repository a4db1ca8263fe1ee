"""Reads run folders into frames: one row per run, per export, per logged step and per epoch.

Everything is checked here, once, so that statistics, tables and figures work on sound numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from pydantic import BaseModel, ValidationError

from qat_vsam.errors import InputError, explain
from qat_vsam.report.choices import Choice, read_choices
from qat_vsam.report.roles import read_roles
from qat_vsam.report.schema import BenchRecord, EpochRecord, RunRecord, StepRecord

RESULT = "result.json"
TRIALS = "tune"
BENCH = "bench.json"
Record = TypeVar("Record", bound=BaseModel)


@dataclass(frozen=True)
class Results:
    """What was found below the given folders.

    Attributes:
        runs: one row per run, ordered by arm and seed; accuracies are fractions.
        exports: one row per run and export format.
        steps: the "step" lines of every metrics.jsonl, with the columns arm and seed.
        epochs: the "epoch" lines, likewise.
        options: the optimizer's options of each arm (of its first seed).
        versions: library versions of the first run.
        environment: what the first run's environment.json says of the machine (empty without that file).
        bench: interleaved step times, or None.
        unfinished: names of seed folders that hold no result yet.
        roles: arm -> role, where a comparison says it.
        choices: how settings were chosen by trials, where they were.
    """

    runs: pd.DataFrame
    exports: pd.DataFrame
    steps: pd.DataFrame
    epochs: pd.DataFrame
    options: dict[str, dict[str, Any]]
    versions: dict[str, str]
    environment: dict[str, Any]
    bench: BenchRecord | None
    unfinished: tuple[str, ...]
    roles: dict[str, str]
    choices: tuple[Choice, ...]


def load_results(runs: Path | Sequence[Path], bench: Path | None = None) -> Results:
    """Reads every finished run below `runs`.

    Args:
        runs: a comparison folder (ARM/seed-K/result.json below it, bench.json in it), or single run folders.
        bench: a bench.json to use in place of the folder's own.

    Raises:
        InputError: a folder is missing or holds no result; a file is broken or holds an impossible value;
            an arm has one seed twice; the runs are of different models or datasets.
    """
    roots = [Path(runs)] if isinstance(runs, str | Path) else [Path(root) for root in runs]
    folders = sorted({folder.resolve(): folder for root in roots for folder in _run_folders(root)}.values())
    if not folders:
        where = ", ".join(str(root) for root in roots) or "no folder"
        raise InputError(
            explain(
                "runs",
                f"{where} without any {RESULT}",
                f"a run folder, or a comparison folder with ARM/seed-K/{RESULT} below it",
                "finish a run with `qat-vsam train` or `qat-vsam compare` first",
            )
        )
    records = {folder: read_json(folder / RESULT, RunRecord) for folder in folders}
    ordered = sorted(records.items(), key=lambda item: (item[1].arm, item[1].seed))
    _check_comparable(ordered)
    first_folder, first = ordered[0]
    steps, epochs = _read_all_metrics(ordered)
    options: dict[str, dict[str, Any]] = {}
    for _, record in ordered:
        options.setdefault(record.arm, record.optimizer_options)
    return Results(
        runs=pd.DataFrame([_run_row(record) for _, record in ordered]),
        exports=_frame([row for _, record in ordered for row in _export_rows(record)], _EXPORT_COLUMNS),
        steps=steps,
        epochs=epochs,
        options=options,
        versions=dict(first.versions),
        environment=_read_environment(first_folder),
        bench=_find_bench(roots, bench),
        unfinished=tuple(name for root in roots for name in _unfinished(root)),
        roles=read_roles(roots),
        choices=read_choices(roots),
    )


def read_json(path: Path, record: type[Record]) -> Record:
    """Reads and checks one JSON file.

    Raises:
        InputError: in one line, the file, the key, what it holds and what it should.
    """
    try:
        text = path.read_text(encoding="utf-8")
        return record.model_validate(json.loads(text))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            explain(str(path), f"{type(error).__name__}", "a readable file", "check the path and its rights")
        ) from error
    except ValueError as error:
        raise InputError(_describe(str(path), error)) from error


def _describe(where: str, error: ValueError) -> str:
    if isinstance(error, ValidationError):
        problem = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in problem["loc"])
        got = "nothing" if problem["type"] == "missing" else repr(problem["input"])
        got = got if len(got) <= 60 else got[:57] + "..."
        expected = "a value" if problem["type"] == "missing" else problem["msg"].removeprefix("Input should be ")
        where = f"{where}: {key}" if key else where
        return explain(where, got, expected, "run that arm again, or leave its folder out")
    if isinstance(error, json.JSONDecodeError):
        got = f"no JSON at line {error.lineno}, column {error.colno}"
        return explain(where, got, "a whole JSON document", "run that arm again, or leave its folder out")
    return explain(where, str(error), "a sound file", "run that arm again, or leave its folder out")


def _run_folders(root: Path) -> list[Path]:
    if root.name == RESULT and root.is_file():
        return [root.parent]
    if not root.is_dir():
        raise InputError(explain("runs", root, "an existing folder", "check the path"))
    if (root / RESULT).is_file():
        return [root]
    # trials are no runs of the comparison: they have a validation accuracy and nothing else
    found = [path.parent for path in root.rglob(RESULT)]
    return [folder for folder in found if folder.relative_to(root).parts[0] != TRIALS]


def _unfinished(root: Path) -> list[str]:
    seeds = sorted(folder for folder in root.glob("*/seed-*") if folder.is_dir())
    return [f"{folder.parent.name}/{folder.name}" for folder in seeds if not (folder / RESULT).exists()]


def _check_comparable(ordered: Sequence[tuple[Path, RunRecord]]) -> None:
    seen: dict[tuple[str, int], Path] = {}
    for folder, record in ordered:
        twin = seen.setdefault((record.arm, record.seed), folder)
        if twin is not folder:
            raise InputError(
                explain(
                    f"seed {record.seed} of arm {record.arm}",
                    f"{twin} and {folder}",
                    "one run per arm and seed",
                    "leave one of them out",
                )
            )
    for key in ("model", "data"):
        names = sorted({getattr(record, key).name for _, record in ordered})
        if len(names) > 1:
            raise InputError(
                explain(key, ", ".join(names), "one and the same in every run", "write a report for each of them")
            )
    for arm in sorted({record.arm for _, record in ordered}):
        traits = {(r.precision, r.kind, r.optimizer) for _, r in ordered if r.arm == arm}
        if len(traits) > 1:
            raise InputError(
                explain(
                    f"arm {arm}",
                    f"runs of {len(traits)} precisions, kinds or optimizers",
                    "runs that differ in their seed only",
                    "give the others an arm name of their own",
                )
            )


def _run_row(record: RunRecord) -> dict[str, Any]:
    return {
        "name": record.name,
        "arm": record.arm,
        "label": record.label,
        "seed": record.seed,
        "precision": record.precision,
        "target": record.target,
        "kind": record.kind,
        "optimizer": record.optimizer,
        "test_accuracy": record.accuracy.test,
        "validation_accuracy": record.accuracy.validation,
        "float_before": record.accuracy.float_before,
        "calibrated": record.accuracy.calibrated,
        **record.cost.model_dump(),
        **record.size.model_dump(),
        "epochs": record.epochs,
        "model": record.model.name,
        "parameters": record.model.parameters,
        "data": record.data.name,
        "train_images": record.data.train,
        "validation_images": record.data.validation,
        "test_images": record.data.test,
        "command": record.command,
        "recipe_sha256": record.recipe_sha256,
        "optimizer_options": json.dumps(record.optimizer_options, sort_keys=True),
    }


_EXPORT_COLUMNS = (
    "arm",
    "seed",
    "format",
    "bytes",
    "test_accuracy",
    "trained_accuracy",
    "latency_ms",
    "argmax_agreement",
    "passed",
    "worst_layer",
    "runtime",
    "inputs",
)


def _export_rows(record: RunRecord) -> list[dict[str, Any]]:
    return [
        {
            "arm": record.arm,
            "seed": record.seed,
            "format": export.format,
            "bytes": export.bytes,
            "test_accuracy": export.test_accuracy,
            "trained_accuracy": record.accuracy.test,
            "latency_ms": export.latency_ms,
            "argmax_agreement": export.proof.argmax_agreement,
            "passed": export.proof.passed,
            "worst_layer": export.proof.worst_layer,
            "runtime": export.proof.runtime,
            "inputs": export.proof.inputs,
        }
        for export in record.exports
    ]


def _read_all_metrics(ordered: Iterable[tuple[Path, RunRecord]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    rows: dict[str, list[dict[str, Any]]] = {"step": [], "epoch": []}
    kinds: dict[str, type[BaseModel]] = {"step": StepRecord, "epoch": EpochRecord}
    for folder, record in ordered:
        path = folder / "metrics.jsonl"
        if not path.is_file():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                content = json.loads(line)
                kind = content.get("kind") if isinstance(content, dict) else None
                if kind not in kinds:
                    continue
                values = kinds[kind].model_validate(content).model_dump()
            except ValueError as error:
                raise InputError(_describe(f"{path}, line {number}", error)) from error
            rows[kind].append({"arm": record.arm, "seed": record.seed, **values})
    columns = {kind: ("arm", "seed", *model.model_fields) for kind, model in kinds.items()}
    return _frame(rows["step"], columns["step"]), _frame(rows["epoch"], columns["epoch"])


def _frame(rows: list[dict[str, Any]], columns: Iterable[str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(columns))


def _read_environment(folder: Path) -> dict[str, Any]:
    path = folder / "environment.json"
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(_describe(str(path), error)) from error
    return content if isinstance(content, dict) else {}


def _find_bench(roots: Sequence[Path], bench: Path | None) -> BenchRecord | None:
    if bench is not None:
        return read_json(Path(bench), BenchRecord)
    found = [root / BENCH for root in roots if (root / BENCH).is_file()]
    return read_json(found[0], BenchRecord) if found else None
