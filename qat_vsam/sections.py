"""The sections of a recipe: model, data, quantization, optimizer and training, each with the values it may hold."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
# a run's name becomes a folder: no separators that leave it, no hidden names
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=100)]

N = TypeVar("N")
# one number for each channel; a single one counts for all
PerChannel = Annotated[
    list[N], Field(min_length=1), BeforeValidator(lambda given: [given] if isinstance(given, int | float) else given)
]

OptimizerName = Literal[
    "sgd",
    "sam",
    "vsam",
    "vsam_paper",
    "asam",
    "looksam",
    "ae_sam",
    "ae_looksam",
    "random_sam",
    "esam",
    "fsam",
    "msam",
    "s2_sam",
    "sam_on",
    "le_sam",
    "saq",
    "split_sgd",
    "periodic_sam",
    "random_count_sam",
    "ramp_sam",
    "late_sam",
]


class Section(BaseModel):
    """A part of a recipe; unknown keys are mistakes."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ModelSection(Section):
    """Which network, and its first weights."""

    name: str
    checkpoint: str | None = None
    options: dict[str, Any] = {}
    mean: PerChannel[Finite] | None = None
    std: PerChannel[Positive] | None = None


class DataSection(Section):
    """Which images, and how many of them train, validate and test.

    `seed` draws the training and validation images and the wrong labels; the test images never depend on it. null: 0,
    or in a comparison the seed of the run, so that an interval over seeds covers the draw of the data too.
    """

    name: str
    root: str | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    train_size: Annotated[int, Field(ge=1)] | None = None
    validation_size: Annotated[int, Field(ge=1)] | None = None
    validation_from: Literal["train", "test"] = "train"
    batch_size: Annotated[int, Field(ge=1)] = 128
    augment: Literal["crop_flip", "crop2_flip", "shift"] | None = None
    label_noise: Annotated[float, Field(ge=0, le=1)] = 0.0
    drop_last: bool = True
    options: dict[str, Any] = {}


class QuantSection(Section):
    """Bits and policy; `None` in its place leaves the network in float32."""

    bits: str
    target: Literal["simulated", "onnxruntime", "openvino", "litert", "executorch-xnnpack", "tensorrt", "qonnx"] = (
        "simulated"
    )
    method: Literal["lsq", "lsq_plus", "pact", "dorefa", "minmax", "percentile", "mse"] = "lsq"
    group_size: Annotated[int, Field(ge=1)] | None = None
    balanced: bool = False
    power_of_two: bool = False
    surrogate: Literal["ste", "ewgs", "stable"] = "ste"
    surrogate_strength: Positive | None = None
    first_last_bits: Annotated[int, Field(ge=1, le=8)] | None = 8
    keep: list[str] = []
    overrides: dict[str, str] = {}
    residual_adds: Literal["float", "quantized"] = "float"
    batch_norm: Literal["keep", "freeze"] = "keep"
    freeze_after: Annotated[int, Field(ge=0)] = 0
    backend: Literal["own", "brevitas"] = "own"
    calibration: Literal["mse", "lsq", "torchao-minmax", "torchao-mse"] = "mse"
    calibration_images: Annotated[int, Field(ge=1)] = 1024
    correct_bias: bool = False


class OptimizerSection(Section):
    """The sharpness-aware optimizer and its base; further keys are options of the named optimizer.

    `momentum` and `nesterov` are of the base sgd alone, where null means 0.9 and false.
    """

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    name: OptimizerName = "vsam"
    base: Literal["sgd", "adamw"] = "sgd"
    lr: Positive = 0.02
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    nesterov: bool | None = None
    weight_decay: NonNegative = 1e-4
    step_size_lr_factor: Positive = 1.0

    @property
    def options(self) -> dict[str, Any]:
        """The keys that belong to the named optimizer (rho, gradient_budget, ...)."""
        return dict(self.__pydantic_extra__ or {})


class TrainSection(Section):
    """The loop.

    `compile_quantizers`: fused kernels for the quantizers, always, never, or (null) where they pay. `compile_model`:
    `torch.compile` of the whole network, for training and evaluation.
    """

    epochs: Annotated[int, Field(ge=0)] = 2
    lr_schedule: Literal["cosine", "constant"] = "cosine"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    distill: Literal["kl", "mse"] | None = None
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    log_every: Annotated[int, Field(ge=1)] = 10
    checkpoint_every: Annotated[int, Field(ge=1)] | None = None
    validate_every: Annotated[int, Field(ge=1)] = 1
    compile_quantizers: bool | None = None
    compile_model: bool = False
