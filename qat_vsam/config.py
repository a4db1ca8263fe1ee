"""The schema of a recipe file: what a run is, said once, checked before anything starts.

A recipe is a YAML file read by `load_recipe`; a comparison is a recipe plus `arms` and `seeds`, read by
`load_comparison`. Every mistake is a `ConfigError` that names the key, the value, the rule and what to do.
Nothing here imports torch: `qat-vsam ls` and `--help` stay quick.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent

from qat_vsam.errors import ConfigError, did_you_mean, explain

MAX_BYTES = 256 * 1024
MAX_DEPTH = 20

S = TypeVar("S", bound="Section")
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
# a run's name becomes a folder: no separators that leave it, no hidden names
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=100)]


class Section(BaseModel):
    """A part of a recipe; unknown keys are mistakes."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ModelSection(Section):
    """Which network, and its first weights."""

    name: str
    checkpoint: str | None = None
    options: dict[str, Any] = {}
    mean: list[float] | None = None
    std: list[Positive] | None = None


class DataSection(Section):
    """Which images, and how many of them train, validate and test."""

    name: str
    root: str | None = None
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
    target: Literal["simulated", "onnxruntime"] = "simulated"
    method: Literal["lsq", "minmax"] = "lsq"
    first_last_bits: Annotated[int, Field(ge=1, le=8)] | None = 8
    keep: list[str] = []
    calibration_images: Annotated[int, Field(ge=1)] = 1024


class OptimizerSection(Section):
    """The sharpness-aware optimizer and its base; further keys are options of the named optimizer."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    name: Literal["sgd", "sam", "vsam", "split_sgd"] = "vsam"
    base: Literal["sgd", "adamw"] = "sgd"
    lr: Positive = 0.02
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    weight_decay: NonNegative = 1e-4
    step_size_lr_factor: Positive = 1.0

    @property
    def options(self) -> dict[str, Any]:
        """The keys that belong to the named optimizer (rho, gradient_budget, ...)."""
        return dict(self.__pydantic_extra__ or {})


class TrainSection(Section):
    """The loop."""

    epochs: Annotated[int, Field(ge=0)] = 2
    lr_schedule: Literal["cosine", "constant"] = "cosine"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    log_every: Annotated[int, Field(ge=1)] = 10
    checkpoint_every: Annotated[int, Field(ge=1)] | None = None
    validate_every: Annotated[int, Field(ge=1)] = 1
    compile_quantizers: bool = False


class Recipe(Section):
    """One run."""

    name: Name
    label: str | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    device: str = "cpu"
    threads: Annotated[int, Field(ge=1)] | None = None
    amp: Literal["bf16"] | None = None
    model: ModelSection
    data: DataSection
    quant: QuantSection | None = None
    optimizer: OptimizerSection = OptimizerSection()
    train: TrainSection = TrainSection()
    export: list[Literal["onnx", "packed"]] = []
    init_from: str | None = None

    @property
    def precision(self) -> str:
        """`float32`, or the bits of the quantized network."""
        return self.quant.bits if self.quant else "float32"


class BenchSection(Section):
    """The interleaved timing of the arms: `repeats` rounds, each arm's a run of `steps` training steps."""

    repeats: Annotated[int, Field(ge=3)] = 30
    steps: Annotated[int, Field(ge=1)] = 10
    batch_size: Annotated[int, Field(ge=2)] | None = None


class Comparison(Section):
    """A grid: one recipe, changed arm by arm, over the same seeds."""

    name: Name
    title: str
    description: str = ""
    notes: list[str] = []
    seeds: Annotated[int, Field(ge=1, le=1000)] = 5
    workers: Annotated[int, Field(ge=1)] = 2
    recipe: dict[str, Any]
    arms: Annotated[dict[Name, dict[str, Any]], Field(min_length=1)]
    bench: BenchSection | None = BenchSection()

    def arm(self, arm: str, seed: int) -> Recipe:
        """The recipe of one arm and seed; only the first seed is exported."""
        merged = merge(self.recipe, self.arms[arm])
        merged |= {"name": f"{self.name}-{arm}", "seed": seed, "label": merged.get("label", arm)}
        if seed > 0:
            merged["export"] = []
        return _validate(Recipe, merged, prefix=("arms", arm))


def merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `change` put over it, mapping by mapping.

    An `optimizer` of another `name` brings its own options: those of the old one do not fit it.

    Example:
        >>> merge({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}})
        {'a': {'b': 3, 'c': 2}}
    """
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            if key == "optimizer" and value.get("name", old.get("name")) != old.get("name"):
                old = {k: v for k, v in old.items() if k in OptimizerSection.model_fields}
            merged[key] = merge(old, value)
        else:
            merged[key] = value
    return merged


def read_yaml(text: str, source: str) -> dict[str, Any]:
    """Parse a recipe's text; aliases, tags, duplicate keys, deep nesting and huge files are refused.

    Raises:
        ConfigError: with the file and line.
    """
    if len(text.encode(errors="replace")) > MAX_BYTES:
        raise ConfigError(explain(source, "a larger file", f"at most {MAX_BYTES} bytes", "check the path"))
    try:
        depth = 0
        for event in YAML(typ="safe", pure=True).parse(io.StringIO(text)):
            depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
            if isinstance(event, AliasEvent):
                raise ConfigError(explain(source, "an alias (*name)", "plain YAML", "write the value out"))
            if depth > MAX_DEPTH:
                raise ConfigError(explain(source, "deep nesting", f"<= {MAX_DEPTH} levels", "flatten it"))
        content = YAML(typ="safe", pure=True).load(io.StringIO(text))
    except (YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(explain(source, reason, "a YAML mapping", "correct the line named")) from None
    if not isinstance(content, dict):
        raise ConfigError(explain(source, type(content).__name__, "a YAML mapping", "see `qat-vsam ls`"))
    return content


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """`["a.b=1e-3"]` as a nested mapping; values are read as YAML scalars or flow collections.

    Example:
        >>> parse_overrides(["optimizer.lr=1e-3", "quant=null"])
        {'optimizer': {'lr': 0.001}, 'quant': None}
    """
    result: dict[str, Any] = {}
    for item in overrides:
        key, separator, text = item.partition("=")
        parts = key.split(".")
        if not separator or not all(parts):
            raise ConfigError(explain("override", repr(item), "KEY=VALUE", "write for example train.epochs=3"))
        value = read_yaml(f"value: {text}", f"override {key}").get("value")
        for part in reversed(parts):
            value = {part: value}
        result = merge(result, value)
    return result


def find_config(name: str) -> Path:
    """The file of a recipe: a path, or the NAME of a shipped one (`NAME/compare.yaml` or `NAME.yaml`).

    Raises:
        ConfigError: neither a file nor a known name.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if path.is_file():
            return path
        raise ConfigError(explain("recipe", name, "a file that exists", "see `qat-vsam ls` for shipped recipes"))
    shipped = shipped_configs()
    if name in shipped:
        return shipped[name]
    raise ConfigError(explain("recipe", name, "a shipped recipe or a .yaml file", did_you_mean(name, shipped)))


def shipped_configs() -> dict[str, Path]:
    """Name -> file of every recipe that comes with the package (in the wheel) or the checkout (editable)."""
    package = Path(__file__).parent
    found: dict[str, Path] = {}
    for folder in (package / "configs", package.parent / "configs"):
        for path in sorted(folder.rglob("*.yaml")):
            relative = path.relative_to(folder).with_suffix("")
            name = str(relative.parent if relative.name == "compare" else relative)
            found.setdefault(name, path)
    return found


def is_comparison(content: Mapping[str, Any]) -> bool:
    """Whether a parsed file is a grid of arms rather than one recipe."""
    return "arms" in content


def load_recipe(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read and check one recipe.

    Raises:
        ConfigError: the file or an override is wrong; the message names the key.
    """
    content = merge(read_recipe_file(path), parse_overrides(overrides))
    if is_comparison(content):
        raise ConfigError(explain(str(path), "a comparison (it has arms)", "one recipe", "use `qat-vsam compare`"))
    return _validate(Recipe, content)


def load_comparison(path: Path, overrides: Iterable[str] = ()) -> Comparison:
    """Read and check a comparison with all its arms.

    Raises:
        ConfigError: the file, an arm or an override is wrong; the message names the key.
    """
    content = merge(read_recipe_file(path), parse_overrides(overrides))
    if not is_comparison(content):
        raise ConfigError(explain(str(path), "one recipe (no arms)", "a comparison", "use `qat-vsam train`"))
    comparison = _validate(Comparison, content)
    for arm in comparison.arms:
        _check_start(arm, {name: comparison.arm(name, 0) for name in comparison.arms})
    return comparison


def _check_start(arm: str, recipes: Mapping[str, Recipe]) -> None:
    start = recipes[arm].init_from
    if start is None:
        return
    others = [name for name, recipe in recipes.items() if name != arm and recipe.init_from is None]
    if start not in others:
        advice = did_you_mean(start, others) if others else "let another arm train from its own start"
        raise ConfigError(explain(f"arms.{arm}.init_from", start, "another arm that starts by itself", advice))


def recipe_from(content: Mapping[str, Any], overrides: Iterable[str] = ()) -> Recipe:
    """Check a recipe given as plain values.

    Raises:
        ConfigError: a value or an override is wrong; the message names the key.
    """
    return _validate(Recipe, merge(content, parse_overrides(overrides)))


def dump_yaml(section: Section) -> str:
    """The resolved recipe as YAML, every default written out."""
    stream = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(section.model_dump(mode="json"), stream)
    return stream.getvalue()


def fingerprint(section: Section) -> str:
    """sha256 of the resolved recipe: equal exactly when every option is."""
    canonical = json.dumps(section.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def read_recipe_file(path: Path) -> dict[str, Any]:
    """The content of a recipe or comparison file, parsed and not yet checked.

    Raises:
        ConfigError: unreadable, or not plain YAML.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(explain(str(path), "a larger file", f"at most {MAX_BYTES} bytes", "check the path"))
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(explain(str(path), error, "a readable text file", "check the path")) from None
    return read_yaml(text, str(path))


def _validate(schema: type[S], content: dict[str, Any], prefix: tuple[str, ...] = ()) -> S:
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        lines = [_explain_problem(schema, problem, prefix) for problem in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None


def _explain_problem(schema: type[BaseModel], problem: Mapping[str, Any], prefix: tuple[str, ...]) -> str:
    location = [str(part) for part in problem["loc"]]
    key = ".".join((*prefix, *location)) or "recipe"
    got = repr(problem["input"])
    got = got if len(got) <= 80 else got[:77] + "..."
    if problem["type"] == "extra_forbidden":
        fields = _fields_at(schema, location[:-1])
        return explain(key, got, "no such key", did_you_mean(location[-1], fields))
    if problem["type"] == "missing":
        return explain(key, "nothing", "a value", f"add {key}")
    if problem["type"] == "literal_error" and isinstance(problem["input"], str):
        choices = [part.strip(" '") for part in problem["ctx"]["expected"].replace(" or ", ", ").split(",")]
        return explain(key, got, "one of " + ", ".join(choices), did_you_mean(problem["input"], choices))
    rule = problem["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return explain(key, got, rule, "correct it in the recipe or by KEY=VALUE")


def _fields_at(schema: type[BaseModel], location: Iterable[str]) -> list[str]:
    for part in location:
        field = schema.model_fields.get(part)
        if field is None:
            break
        annotations = (field.annotation, *get_args(field.annotation))
        schema = next((a for a in annotations if isinstance(a, type) and issubclass(a, BaseModel)), schema)
    return list(schema.model_fields)
