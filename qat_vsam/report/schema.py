"""The shape of the files that a report reads: result.json, bench.json and the lines of metrics.jsonl.

Unknown keys are ignored, so that a newer run folder still reports; a missing or impossible value is refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qat_vsam.errors import InputError, explain

SCHEMA = 2

Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Text = Annotated[str, Field(min_length=1)]


class _Record(BaseModel):
    # protected_namespaces: "model" is our word here, not pydantic's
    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


class ModelRecord(_Record):
    name: Text
    parameters: Count | None = None


class DataRecord(_Record):
    """`seed` draws the images and the wrong labels; everything else is the same for all seeds of an arm."""

    name: Text
    seed: int | None = None
    augment: str | None = None
    label_noise: Fraction = 0.0
    options: dict[str, Any] = {}
    train: Count | None = None
    validation: Count | None = None
    test: Count | None = None


class AccuracyRecord(_Record):
    test: Fraction
    validation: Fraction | None = None
    float_before: Fraction | None = None
    calibrated: Fraction | None = None


class CostRecord(_Record):
    gradient_evaluations: Amount | None = None
    steps: Count | None = None
    gradient_evaluations_per_step: Amount | None = None
    forwards: Count | None = None
    train_seconds: Amount | None = None
    images_per_second: Amount | None = None
    peak_memory_bytes: Count | None = None


class SizeRecord(_Record):
    float_bytes: Count | None = None
    packed_bytes: Count | None = None
    bit_operations: Amount | None = None


class ProofRecord(_Record):
    runtime: str | None = None
    runtime_version: str | None = None
    inputs: Count | None = None
    weight_codes_equal: bool | None = None
    activation_codes_equal: Fraction | None = None
    argmax_agreement: Fraction | None = None
    passed: bool | None = None
    worst_layer: str | None = None

    @property
    def codes_equal(self) -> bool:
        """Whether no weight code and no activation code is known to differ."""
        return self.weight_codes_equal is not False and self.activation_codes_equal in (None, 1.0)


class ExportRecord(_Record):
    format: Text
    bytes: Count | None = None
    proof: ProofRecord = ProofRecord()
    test_accuracy: Fraction | None = None
    latency_ms: Amount | None = None


class ProvenanceRecord(_Record):
    """Where a run comes from; one that went on under another commit or machine lists them, parted by commas.

    `recorded` is "afterwards" where this was found out later and not written down by the run itself.
    """

    package: str | None = None
    commit: str | None = None
    versions: dict[str, str] = {}
    processor: str | None = None
    platform: str | None = None
    threads: Count | None = None
    device: str | None = None
    amp: str | None = None
    finished: str | None = None
    recorded: str | None = None


class RunRecord(_Record):
    """One result.json; `optimizer_options` are all options of the optimizer, defaults written out."""

    schema_version: Literal[2] = Field(alias="schema")
    name: Text
    arm: Text
    label: Text
    seed: int
    precision: Text
    target: str | None = None
    kind: Literal["trained", "post_training", "float_reference"]
    optimizer: str | None = None
    optimizer_options: dict[str, Any] = {}
    optimizer_derived: dict[str, Any] | None = None
    model: ModelRecord
    data: DataRecord
    accuracy: AccuracyRecord
    training_loss: float | None = None
    cost: CostRecord = CostRecord()
    size: SizeRecord = SizeRecord()
    exports: tuple[ExportRecord, ...] = ()
    epochs: Amount | None = None
    command: str | None = None
    recipe_sha256: str | None = None
    provenance: ProvenanceRecord = ProvenanceRecord()


class TrialRecord(_Record):
    """The result.json of a trial, which is shown no test image."""

    validation_accuracy: Fraction
    diverged: bool = False
    recipe_sha256: str | None = None


class BenchRow(_Record):
    """`ratio` is the arm's step in units, the median over rounds with the 95 % interval of that median."""

    arm: Text
    median_ms: Amount | None = None
    ratio: Amount
    ratio_low: Amount | None = None
    ratio_high: Amount | None = None
    n: Count | None = None


class BenchRecord(_Record):
    """One bench.json: step times of the arms in one unit, measured interleaved in one process."""

    unit: Text
    unit_ms: Amount | None = None
    steps: Count | None = None
    threads: Count | None = None
    repeats: Count | None = None
    rows: tuple[BenchRow, ...]


class StepRecord(_Record):
    """A "step" line of metrics.jsonl; `psf_norm` is absent, null or NaN before the first second gradient.

    `rate` is the share of steps that the optimizer means to pay a second gradient for; plain ones have none.
    """

    step: Count
    gradient_evaluations: Amount | None = None
    psf_norm: float | None = None
    gradient_norm: float | None = None
    rate: Fraction | None = None
    loss: float | None = None


class EpochRecord(_Record):
    """An "epoch" line of metrics.jsonl."""

    epoch: Count
    step: Count | None = None
    train_loss: float | None = None
    validation_accuracy: Fraction | None = None
    gradient_evaluations: Amount | None = None


_AGAIN = "run that arm again, or leave its folder out"
Content = TypeVar("Content", bound=BaseModel)


def read_json(path: Path, record: type[Content]) -> Content:
    """Reads and checks one JSON file.

    Raises:
        InputError: in one line, the file, the key, what it holds and what it should.
    """
    return parse_json(read_text(path), record, str(path))


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            explain(str(path), type(error).__name__, "a readable file", "check the path and its rights")
        ) from error


def parse_json(text: str, record: type[Content], where: str) -> Content:
    """Checks JSON text that stands at `where`.

    Raises:
        InputError: as `read_json`.
    """
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        got = f"no JSON at line {error.lineno}, column {error.colno}"
        raise InputError(explain(where, got, "a whole JSON document", _AGAIN)) from error
    return check(content, record, where)


def check(content: object, record: type[Content], where: str) -> Content:
    """Checks content that stands at `where`.

    Raises:
        InputError: as `read_json`.
    """
    try:
        return record.model_validate(content)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in problem["loc"])
        if key == "schema" and problem["input"] == 1:
            expected = f"{SCHEMA}, for its optimizer's options were not recorded"
            raise InputError(explain(f"{where}: schema", 1, expected, _AGAIN)) from error
        got = "nothing" if problem["type"] == "missing" else repr(problem["input"])
        got = got if len(got) <= 60 else got[:57] + "..."
        expected = "a value" if problem["type"] == "missing" else problem["msg"].removeprefix("Input should be ")
        raise InputError(explain(f"{where}: {key}" if key else where, got, expected, _AGAIN)) from error
