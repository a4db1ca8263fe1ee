"""The shape of the files that a report reads: result.json, bench.json and the lines of metrics.jsonl.

Unknown keys are ignored, so that a newer run folder still reports; a missing or impossible value is refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

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
    name: Text
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
    argmax_agreement: Fraction | None = None
    passed: bool | None = None
    worst_layer: str | None = None


class ExportRecord(_Record):
    format: Text
    bytes: Count | None = None
    proof: ProofRecord = ProofRecord()
    test_accuracy: Fraction | None = None
    latency_ms: Amount | None = None


class RunRecord(_Record):
    """One result.json."""

    schema_version: Literal[1] = Field(alias="schema")
    name: Text
    arm: Text
    label: Text
    seed: int
    precision: Text
    target: str | None = None
    kind: Literal["trained", "post_training", "float_reference"]
    optimizer: str | None = None
    optimizer_options: dict[str, Any] = {}
    model: ModelRecord
    data: DataRecord
    accuracy: AccuracyRecord
    cost: CostRecord = CostRecord()
    size: SizeRecord = SizeRecord()
    exports: tuple[ExportRecord, ...] = ()
    epochs: Amount | None = None
    command: str | None = None
    recipe_sha256: str | None = None
    versions: dict[str, str] = {}


class BenchRow(_Record):
    arm: Text
    median_ms: Amount | None = None
    ratio_to_sgd: Amount | None = None
    reference_arm: str | None = None
    n: Count | None = None


class BenchRecord(_Record):
    """One bench.json: step times of the arms, measured interleaved in one process."""

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
